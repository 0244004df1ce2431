"""Messages to the service manager: what it gets, and what becomes of them when it does not read."""

import os
import resource
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfkeeperd.entries import MismatchPolicy
from bpfkeeperd.notify import LOAD_SECONDS, STATUS_MAX, Notifier, one_line
from bpfkeeperd.state import (
    AttachmentStatus,
    Failure,
    MapStatus,
    Outcome,
    ReloadResult,
    Status,
)
from bpfkeeperd.statusline import status_line


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """Where the service manager listens, and the address of it."""
    name = f"bpfkeeperd-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
        made.bind(f"\0{name}")
        yield made, f"@{name}"


Manager = tuple[socket.socket, str]


def received(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(1 << 16).decode())
        except BlockingIOError:
            return found


def test_a_status_is_one_line(manager: Manager) -> None:
    """Else what somebody calls a file could be a message of its own."""
    listener, address = manager
    with closing(Notifier(address)) as notifier:
        notifier.ready("bad\nFDSTOREREMOVE=1\r\x1b[31mname\u2028 \udcff")
    (said,) = received(listener)
    assert said.split("\n") == ["READY=1", "STATUS=bad FDSTOREREMOVE=1  [31mname   "]


@given(st.text(st.characters(codec=None), max_size=2 * STATUS_MAX))
def test_any_text_is_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable() and len(line) <= STATUS_MAX


def test_a_descriptor_goes_along(manager: Manager) -> None:
    listener, address = manager
    reader, writer = os.pipe()
    with closing(Notifier(address)) as notifier:
        assert notifier.send("FDSTORE=1", writer)
    os.close(writer)
    text, fds, _, _ = socket.recv_fds(listener, 4096, 8)
    assert text == b"FDSTORE=1" and len(fds) == 1
    os.write(fds[0], b"x")
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(fds[0])


def test_who_does_not_read_is_not_waited_for(manager: Manager) -> None:
    """What must be known is said again when there is room."""
    listener, address = manager
    with closing(Notifier(address)) as notifier:
        sent = 0
        while notifier.send("FDSTORE=1"):
            sent += 1
            assert sent < 10_000
        notifier.ready("applied")
        assert received(listener) == ["FDSTORE=1"] * sent
        notifier.watchdog()
        notifier.watchdog()
        assert received(listener) == ["READY=1\nSTATUS=applied"]


@pytest.mark.parametrize("address", ["", "@bpfkeeperd-nobody", "/nowhere/notify", "vsock:2:1"])
def test_nobody_listens(address: str) -> None:
    with closing(Notifier(address)) as notifier:
        notifier.ready("x")
        notifier.long_work()
        notifier.watchdog()
        assert not notifier.send("x")


def test_no_descriptor_is_needed_any_more(manager: Manager) -> None:
    listener, address = manager
    with closing(Notifier(address)) as notifier:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            notifier.ready("full")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received(listener) == ["READY=1\nSTATUS=full"]


def test_the_watchdog_is_widened_for_loads(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, address = manager
    monkeypatch.setenv("WATCHDOG_USEC", "3500000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with closing(Notifier(address)) as notifier:
        notifier.watchdog()
        for _ in range(3):  # one message for all loads of a reload
            notifier.load_begins()
        notifier.watchdog()
        notifier.watchdog()
    usec = LOAD_SECONDS * 1_000_000
    assert received(listener) == [
        "WATCHDOG=1",
        f"EXTEND_TIMEOUT_USEC={usec}\nWATCHDOG_USEC={usec}\nWATCHDOG=1",
        "WATCHDOG_USEC=3500000\nWATCHDOG=1",
        "WATCHDOG=1",
    ]


@pytest.mark.parametrize("usec", ["", "0", str(2 * LOAD_SECONDS * 1_000_000)])
def test_a_watchdog_that_need_not_be_widened(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, usec: str
) -> None:
    listener, address = manager
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with closing(Notifier(address)) as notifier:
        notifier.load_begins()
        notifier.watchdog()
        notifier.watchdog()
    assert not [said for said in received(listener)[:1] if "WATCHDOG_USEC" in said]


def test_reloading_says_when(manager: Manager) -> None:
    listener, address = manager
    before = time.monotonic_ns() // 1000
    with closing(Notifier(address)) as notifier:
        notifier.reloading()
        notifier.stopping()
    reloading, stopping = (
        dict(line.split("=", 1) for line in text.split("\n")) for text in received(listener)
    )
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert stopping["STOPPING"] == "1"


def _status(maps: int, up: int, down: int = 0) -> Status:
    kept = MapStatus("m", 7, 1, 4, 8, 4, MismatchPolicy.FAIL)
    attached = [AttachmentStatus("o", "p", "h", "t", True)] * up
    return Status(
        (kept,) * maps, (*attached, *[AttachmentStatus("o", "p", "h", "t", False)] * down)
    )


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome(ReloadResult.OK, kept_maps=4), "applied in 0 ms: nothing done, 4 maps kept"),
        (
            Outcome(ReloadResult.REJECTED, failures=(Failure("k.yaml:3:1: no\n  maps:\n  ^"),)),
            "reload rejected: k.yaml:3:1: no; still keeping 4 maps, 1 attachment of the manifest of"
            " 12:03",
        ),
        (
            Outcome(ReloadResult.FAILED, refusals=("map a: no",), kept_maps=3),
            "applied in part in 0 ms: nothing done, 3 maps kept, 1 problem: map a: no; keeping"
            " 4 maps, 1 attachment of the manifest of 12:03",
        ),
        (
            Outcome(ReloadResult.FAILED, failures=(Failure("x" * 500),), rolled_back=True),
            f"rolled back in 0 ms: nothing done, 0 maps kept, 1 problem: {'x' * 197}...; still"
            " keeping 4 maps, 1 attachment of the manifest of 12:03",
        ),
    ],
)
def test_the_status_says_what_is_kept(outcome: Outcome, line: str) -> None:
    assert status_line(outcome, _status(4, 1, down=2), "12:03") == line
    assert status_line(outcome, Status(), "").endswith("12:03") is False
