"""The control socket: server and client in one process. What comes from a client is garbage until
it is understood, and a client that does not listen is not waited for."""

import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd.control import (
    NAME_MAX,
    REQUEST_MAX,
    ControlServer,
    answer,
    control_path,
    read_request,
    request_reload,
)
from bpfkeeperd.errors import KeeperError, NoDaemonError
from bpfkeeperd.state import Failure, Outcome, ReloadResult

OUTCOME = Outcome(
    ReloadResult.FAILED,
    done=("load object one", "attach one"),
    failures=(Failure("the verifier refuses program count", "0: R1=ctx()\nR0 invalid\n"),),
    refusals=("map flows: it differs",),
    notes=("runs in generic mode",),
    kept_maps=3,
    duration_seconds=0.25,
)

ENDED = (
    "the daemon ended before the reload was over: what came of it is in its log; what is pinned and"
    " attached stays: start it, or reload again when it is back"
)

Respond = Callable[[socket.socket], None]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return control_path(str(tmp_path), "/etc/bpfkeeperd/k.yaml")


@pytest.fixture
def server(path: str) -> Iterator[ControlServer]:
    with ControlServer(path) as listening:
        yield listening


def serve_one(server: ControlServer, respond: Respond) -> threading.Thread:
    """Waits for one client, and does this with it."""

    def serve() -> None:
        select.select([server], [], [], 10)
        client = server.accept()
        assert client
        select.select([client], [], [], 10)
        respond(client)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def answer_it(client: socket.socket) -> None:
    assert read_request(client)  # closed with a request unread, the answer would be lost too
    answer(client, OUTCOME)


def reload(path: str, **options: bool) -> Outcome | None:
    force, wait = options.get("force", False), options.get("wait", True)
    return request_reload(path, force=force, wait=wait, timeout_seconds=10)


def test_the_path_is_that_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to("/etc/bpfkeeperd/k.yaml")
    expected = "/run/k/etc-bpfkeeperd-k\\x2eyaml.sock"
    assert control_path("/run/k", "/etc/bpfkeeperd/k.yaml") == expected
    assert control_path("/run/k", "/etc/./bpfkeeperd/../bpfkeeperd/k.yaml") == expected
    assert control_path("/run/k", f"{tmp_path}/link.yaml") == expected


@pytest.mark.parametrize("length", [70, 81, 200, 3000])
def test_long_paths_are_told_apart_and_short_enough(length: int) -> None:
    one, other = (control_path("/run/k", "/" + "d" * length + end) for end in ("/a", "/b"))
    assert one != other
    for path in (one, other):
        assert len(os.path.basename(path)) <= NAME_MAX + len(".sock")


@pytest.mark.parametrize("force", [True, False])
def test_a_request_and_its_answer(server: ControlServer, path: str, force: bool) -> None:
    seen: list[object] = []

    def respond(client: socket.socket) -> None:
        seen.append(read_request(client))
        answer(client, OUTCOME)

    thread = serve_one(server, respond)
    assert reload(path, force=force) == OUTCOME
    thread.join(10)
    wanted = {"command": "reload", "force": force, "keep_pinned": False, "wait": True}
    assert seen == [wanted]


def test_a_long_path_is_served(tmp_path: Path) -> None:
    """sockaddr_un takes 107 bytes; a runtime directory may be deeper."""
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    path = control_path(str(directory), "/" + "f" * 300)
    with ControlServer(path) as server:
        thread = serve_one(server, answer_it)
        assert reload(path) == OUTCOME
        thread.join(10)


def test_not_waiting(server: ControlServer, path: str) -> None:
    assert reload(path, wait=False) is None
    client = server.accept()
    assert client
    with client:
        assert not client.getblocking(), "the daemon waits for nobody"
        wanted = {"command": "reload", "force": False, "keep_pinned": False, "wait": False}
        assert read_request(client) == wanted


def test_nobody_asks(server: ControlServer) -> None:
    assert server.accept() is None


def test_nobody_listens(tmp_path: Path, path: str) -> None:
    message = "no daemon runs for this manifest: start it, or use `bpfkeeperd apply`"
    for there in (path, f"{tmp_path}/none/k.sock"):
        with pytest.raises(NoDaemonError) as caught:
            reload(there)
        assert str(caught.value) == message


def test_a_socket_that_a_dead_daemon_left(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for an address
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(os.path.basename(path))
    with pytest.raises(NoDaemonError):
        reload(path)
    with ControlServer(path) as server:
        thread = serve_one(server, answer_it)
        assert reload(path) == OUTCOME
        thread.join(10)
    assert not os.path.lexists(path), "it takes its socket away"


def test_something_else_in_its_place(path: str, tmp_path: Path) -> None:
    Path(path).mkdir()
    with pytest.raises(KeeperError, match=f"cannot listen on {tmp_path}/"):
        ControlServer(path)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeeperError, match="cannot listen on "):
        ControlServer(f"{tmp_path}/file/k.sock")


def test_only_this_user_can_connect(server: ControlServer, path: str) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    before = os.umask(0o022)
    os.umask(before)
    assert before != 0o177, "the umask is as it was"


def test_the_daemon_ends_before_it_answers(server: ControlServer, path: str) -> None:
    def end(client: socket.socket) -> None:
        assert read_request(client)
        client.close()

    thread = serve_one(server, end)
    with pytest.raises(KeeperError) as caught:
        reload(path)
    thread.join(10)
    assert str(caught.value) == ENDED


def test_the_daemon_ends_before_it_reads(server: ControlServer, path: str) -> None:
    thread = serve_one(server, socket.socket.close)
    with pytest.raises(KeeperError) as caught:
        reload(path)
    thread.join(10)
    assert str(caught.value) == ENDED


def test_no_answer_in_time(server: ControlServer, path: str) -> None:
    with pytest.raises(KeeperError) as caught:
        request_reload(path, force=False, wait=True, timeout_seconds=0.05)
    assert str(caught.value) == (
        "the daemon gave no answer within 0.05 s: the reload may still be under way"
    )


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    return one, other


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"reload",
        b"null",
        b"[]",
        b'"reload"',
        b"1",
        b"{",
        b"\xff\xfe\x00",
        b'{"command": "reload"',
        b"[" * REQUEST_MAX,
        b'{"a":' * (REQUEST_MAX // 5),
        b" " * REQUEST_MAX + b'{"command": "reload"}',
    ],
    ids=lambda data: repr(data[:20]),
)
def test_a_request_that_cannot_be_understood(data: bytes) -> None:
    daemon, client = pair()
    with daemon, client:
        client.send(data)
        assert read_request(daemon) is None


def test_a_client_that_says_nothing() -> None:
    daemon, client = pair()
    with daemon, client:
        assert read_request(daemon) is None
        client.close()
        assert read_request(daemon) is None


def test_any_bytes_are_a_request_or_none() -> None:
    daemon, client = pair()

    @settings(deadline=None)
    @given(st.binary(min_size=1, max_size=100))
    def any_bytes(data: bytes) -> None:
        client.send(data)
        request = read_request(daemon)
        assert request is None or request == json.loads(data)

    with daemon, client:
        any_bytes()


def received(outcome: Outcome) -> dict[str, Any]:
    daemon, client = pair()
    with client:
        answer(daemon, outcome)
        assert daemon.fileno() == -1, "it hangs up"
        data = client.recv(16 << 20)
    decoded = json.loads(data)
    assert isinstance(decoded, dict)
    return decoded


def test_a_log_too_long_for_one_message_is_cut_from_the_front() -> None:
    """The verifier's last lines are those that tell."""
    log = "".join(f"line {number}\n" for number in range(200_000))
    (failure,) = received(replace(OUTCOME, failures=(Failure("refused", log),)))["failures"]
    assert failure["message"] == "refused"
    assert log.endswith(failure["detail"]) and len(failure["detail"]) >= 1024


@pytest.mark.parametrize(
    "many",
    [
        replace(OUTCOME, failures=(Failure("x" * 5000, "y" * 100_000),) * 500),
        replace(OUTCOME, done=("load object " + "x" * 100,) * 50_000),
        replace(OUTCOME, refusals=("map " + "x" * 1000,) * 5000, notes=("n" * 1000,) * 5000),
    ],
    ids=["failures", "actions", "refusals"],
)
def test_an_outcome_too_long_for_one_message_still_comes(many: Outcome) -> None:
    data = received(many)
    assert data["result"] == "failed"
    assert data["kept_maps"] == 3


def test_a_client_that_went_away() -> None:
    daemon, client = pair()
    client.close()
    answer(daemon, OUTCOME)
    assert daemon.fileno() == -1


def test_a_client_that_does_not_read() -> None:
    daemon, client = pair()
    with client:
        while True:
            try:
                daemon.send(b"x" * 1000)
            except BlockingIOError:
                break
        answer(daemon, OUTCOME)
    assert daemon.fileno() == -1
