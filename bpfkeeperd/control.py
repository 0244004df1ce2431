"""The control socket: how `bpfkeeperd reload` asks the daemon, and learns what came of it.

One request, one answer, each a line of JSON. The socket is named after the manifest's path, so that
it is found even while the manifest is wrong.
"""

import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from bpfkeeperd.errors import KeeperError, NoDaemonError
from bpfkeeperd.layout import escape
from bpfkeeperd.state import Failure, Outcome, ReloadResult

REQUEST_MAX = 4096
"""Bytes of a request."""
NAME_MAX = 80
"""Bytes of a socket's name: with what `_reachable` puts in front, sockaddr_un takes 107."""
_PEER = struct.Struct("3i")


def control_path(directory: str, manifest_file: str) -> str:
    """Where the daemon of a manifest listens."""
    try:
        name = escape(os.path.realpath(manifest_file).strip("/"))
    except FileNotFoundError:
        raise KeeperError(
            f"cannot find the daemon of {manifest_file}: the current directory is gone: name it"
            " from / on"
        ) from None
    if len(name) > NAME_MAX:
        name = f"{name[:40]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{directory}/{name}.sock"


def _reachable(path: str) -> tuple[str, int]:
    """The same socket under a path that is short enough for sockaddr_un, and a descriptor of its
    directory to close afterwards."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{directory}/{os.path.basename(path)}", directory


class ControlServer:
    """Listens for requests; a context manager that takes the socket away.

    It never waits for a client: what cannot be read or sent at once is dropped.
    """

    __slots__ = ("_path", "_socket")

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            address, directory = _reachable(path)
            try:
                if os.path.lexists(path):  # of a daemon that died: the pin root's lock is ours
                    os.unlink(path)
                before = os.umask(0o177)
                try:
                    self._socket.bind(address)
                finally:
                    os.umask(before)
            finally:
                os.close(directory)
            self._socket.listen(16)
        except OSError as error:
            self._socket.close()
            raise KeeperError(f"cannot listen on {path}: {error.strerror or error}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """A client of this user or root; None when there is none."""
        try:
            client, _ = self._socket.accept()
        except BlockingIOError:
            return None
        except OSError:  # no descriptor left: the client is still there, do not ask at once
            time.sleep(0.1)
            return None
        client.setblocking(False)
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] not in (0, os.geteuid()):
            client.close()
            return None
        return client

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_request(client: socket.socket) -> dict[str, object] | None:
    """A client's request; None when it sent none that can be understood."""
    try:
        request = json.loads(client.recv(REQUEST_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def answer(client: socket.socket, outcome: Outcome) -> None:
    """Sends an outcome, cut to what one message can hold, and hangs up."""
    data = asdict(outcome)
    for lines, characters in ((5_000, 16 << 10), (500, 2048), (50, 256), (5, 64)):
        data["failures"] = [
            {"message": failure.message[:characters], "detail": failure.detail[-characters:]}
            for failure in outcome.failures[: min(lines, 200)]
        ]
        for name in ("done", "refusals", "notes"):
            data[name] = [line[:characters] for line in getattr(outcome, name)[:lines]]
        with contextlib.suppress(OSError):
            client.send(json.dumps(data).encode())
            break
    client.close()


def request_reload(
    path: str, *, force: bool, keep_pinned: bool = False, wait: bool, timeout_seconds: float
) -> Outcome | None:
    """Has the daemon reload; its outcome, or None when not waiting for it.

    Raises:
        NoDaemonError: nobody listens.
        KeeperError: no answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(timeout_seconds)
        try:
            address, directory = _reachable(path)
            try:
                client.connect(address)
            finally:
                os.close(directory)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemonError(
                "no daemon runs for this manifest: start it, or use `bpfkeeperd apply`"
            ) from None
        except OSError as error:
            remedy = ": it takes root" if isinstance(error, PermissionError) else ""
            text = f"cannot reach the daemon at {path}: {error.strerror}{remedy}"
            raise KeeperError(text) from None
        try:
            request = {"command": "reload", "force": force, "keep_pinned": keep_pinned}
            client.send(json.dumps({**request, "wait": wait}).encode())
            data = client.recv(16 << 20) if wait else b""
        except TimeoutError:
            raise KeeperError(
                f"the daemon gave no answer within {timeout_seconds:g} s: the reload may still be"
                " under way"
            ) from None
        except (ConnectionResetError, BrokenPipeError):  # it died before it read the request
            data = b""
            wait = True
        except OSError as error:
            raise KeeperError(f"cannot talk to the daemon: {error.strerror}") from None
    if not wait:
        return None
    if not data:
        raise KeeperError(
            "the daemon ended before the reload was over: what came of it is in its log; what is"
            " pinned and attached stays: start it, or reload again when it is back"
        )
    return _decode(json.loads(data))


def _decode(data: Mapping[str, Any]) -> Outcome:
    return Outcome(
        result=ReloadResult(data["result"]),
        done=tuple(data["done"]),
        failures=tuple(Failure(**failure) for failure in data["failures"]),
        refusals=tuple(data["refusals"]),
        notes=tuple(data["notes"]),
        kept_maps=data["kept_maps"],
        duration_seconds=data["duration_seconds"],
        rolled_back=data["rolled_back"],
        swapping_seconds=data["swapping_seconds"],
    )


def daemon_process(path: str) -> int | None:
    """The process that listens; None where nobody does, or this user may not ask."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as client:
        try:
            address, directory = _reachable(path)
            try:
                client.connect(address)  # and goes again, which the daemon takes for no request
            finally:
                os.close(directory)
        except OSError:
            return None
        peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        return int(_PEER.unpack(peer)[0]) or None
