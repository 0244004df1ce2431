"""Which of the descriptors that the service manager passes are served, and which are left alone."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.activation import HasDescriptor, passing_sockets

_TAKE = """
import json, logging, os, subprocess, sys
logging.basicConfig(format="%(message)s")
from bpfkeeperd.service import passed_descriptors
found = passed_descriptors().metrics
child = "env | grep ^LISTEN_; for fd in 3 4 5; do [ ! -e /proc/self/fd/$fd ] || echo $fd; done"
print(json.dumps({
    "address": found.getsockname() if found else None,
    "fd": found.fileno() if found else None,
    "open": [fd for fd in (3, 4, 5) if os.path.exists(f"/proc/self/fd/{fd}")],
    "inherited": [
        subprocess.run(
            ["/bin/sh", "-c", child], close_fds=closes, stdout=subprocess.PIPE, text=True
        ).stdout
        for closes in (True, False)  # two ways to start one, with an environment each
    ],
}))
"""


def take(*passed: tuple[str, HasDescriptor]) -> tuple[dict[str, object], str]:
    """What a process makes of the descriptors, and what it logs."""
    command: Sequence[str] = [sys.executable, "-c", _TAKE]
    variables = {name: value for name, value in os.environ.items() if "LISTEN_" not in name}
    done = subprocess.run(
        passing_sockets(command, passed) if passed else command,
        pass_fds=[each.fileno() for _, each in passed],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer, done.stderr


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def another(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


@pytest.mark.parametrize("name", ["bpfkeeperd-metrics", "bpfkeeperd-metrics.socket", "unknown"])
def test_the_only_one(listener: socket.socket, name: str) -> None:
    found, said = take((name, listener))
    assert found["address"] == list(listener.getsockname())
    assert said == ""


def test_nothing_is_passed() -> None:
    found, said = take()
    assert (found["address"], said) == (None, "")


def test_children_inherit_nothing(listener: socket.socket) -> None:
    found, _ = take(("bpfkeeperd-metrics", listener))
    assert found["inherited"] == ["", ""]


def test_the_one_of_that_name(listener: socket.socket) -> None:
    with ExitStack() as stack:
        others = another(stack), another(stack)
        found, said = take(("a", others[0]), ("bpfkeeperd-metrics", listener), ("b", others[1]))
    assert found["address"] == list(listener.getsockname()) and found["fd"] == 4
    assert found["open"] == [3, 4, 5], "the others are nobody's to close"
    assert said == ""


def test_the_only_one_that_it_can_be(listener: socket.socket) -> None:
    with ExitStack() as stack:
        connected = stack.enter_context(socket.create_connection(listener.getsockname()))
        stored = stack.enter_context(open("/dev/null"))
        found, said = take(("map", stored), ("c", connected), ("x", listener))
    assert found["address"] == list(listener.getsockname())
    assert found["open"] == [3, 4, 5] and said == ""


def test_two_that_it_could_be(listener: socket.socket) -> None:
    with ExitStack() as stack:
        found, said = take(("a", another(stack)), ("b", listener))
    assert found["address"] is None
    assert "passed 2 sockets" in said and "set FileDescriptorName=bpfkeeperd-metrics" in said


def test_none_that_it_could_be() -> None:
    with ExitStack() as stack:
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        local = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        idle = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        found, said = take(("a", datagrams), ("b", local), ("c", idle))
    assert (found["address"], found["open"], said) == (None, [3, 4, 5], "")


def test_no_socket_at_all() -> None:
    with open("/dev/null") as stored:
        found, said = take(("bpfkeeperd-metrics", stored))
    assert found["address"] is None and "is no socket" in said


def test_passed_to_another_process() -> None:
    """Variables that somebody inherited are not meant for it."""
    code = "from bpfkeeperd.service import passed_descriptors; print(passed_descriptors().metrics)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "None\n"
