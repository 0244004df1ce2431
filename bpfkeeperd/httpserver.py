"""The metrics endpoint: an HTTP server whose cost no client can drive up.

One thread serves all connections with a selector. A client that says nothing, says it slowly or
does not take its answer holds a descriptor for a short while and never a thread, so that scrapes
go on beside any number of them; a thread for each connection, even with a bound on their number,
would let those clients have all of them.

With TLS a handshake is part of the request, under its deadline. It begins when a client has sent
the first byte of one: silent clients cost no more than without, and who speaks plain HTTP is told.
"""

import contextlib
import errno
import logging
import os
import select
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Self, assert_never

from bpfkeeperd.errors import KeeperError
from bpfkeeperd.httpanswer import Render, answer, response

if TYPE_CHECKING:  # it brings ssl with it, which the daemon does without when nobody wants it
    from bpfkeeperd.tlsfiles import Certificates, SecureSocket

log = logging.getLogger(__name__)

REQUEST_SECONDS = 2.0
"""From accept until the request must be there, whole."""
ANSWER_SECONDS = 8.0
"""From then on until the client must have taken the answer; Prometheus itself waits 10 s."""
REQUEST_BYTES = 8192
"""Request line and headers together."""
CONNECTIONS = 128
ANSWERS = 16
"""Connections that have yet to take their answer: each holds a text of its own."""
GRACE_SECONDS = 0.1
"""How long a connection is safe from being closed in favour of a new one."""
LAST_SECONDS = 0.25
"""How long those who are there when it closes may take to be done."""
CLOSE_SECONDS = 5.0
"""How long closing waits for a scrape that is being rendered."""
_ACCEPTS_A_TURN = 16
_BACKLOG = 1024

_SEND_BYTES = 1 << 18
"""At a time: others have their turn in between."""
_TLS_HANDSHAKE = b"\x16"
"""What a client that speaks TLS begins with (RFC 8446, ContentType)."""


class _Step(Enum):
    """What a connection does next."""

    HELLO = auto()
    """Its first byte tells whether it speaks TLS."""
    HANDSHAKE = auto()
    REQUEST = auto()
    ANSWER = auto()
    FAREWELL = auto()
    """All is sent but that this was all."""
    DRAIN = auto()
    """The rest of what the client says is read and dropped."""


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    fd: int
    accepted: float
    deadline: float
    step: _Step
    secure: "SecureSocket | None" = None
    """The same socket, once TLS is spoken on it."""
    request: bytes = b""
    answer: memoryview = field(default_factory=lambda: memoryview(b""))
    """What of the answer is still to be sent."""

    @property
    def awaited(self) -> int:
        """The event of the selector that lets the next step be taken."""
        sends = self.step in (_Step.ANSWER, _Step.FAREWELL)
        return selectors.EVENT_WRITE if sends else selectors.EVENT_READ


class MetricsServer:
    """Answers GET and HEAD of / and /metrics from its own thread, until it is closed.

    Args:
        listen: Host and port, or a listening TCP socket, which the server then owns.
        render: Called in the server's thread for each scrape.
        certificates: TLS is spoken with them.

    Raises:
        KeeperError: it cannot listen there.
    """

    def __init__(
        self,
        listen: tuple[str, int] | socket.socket,
        render: Render,
        certificates: "Certificates | None" = None,
    ) -> None:
        self._render = render
        self._certificates = certificates
        self._connections: dict[int, _Connection] = {}  # by descriptor, in the order of accept
        self._listener = (
            _inherited(listen) if isinstance(listen, socket.socket) else _listening(*listen)
        )
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        """Host and port as they are, also when port 0 or an inherited socket was asked for."""
        self._selector = selectors.DefaultSelector()
        self._closing, self._close_signal = socket.socketpair()
        self._selector.register(self._closing, selectors.EVENT_READ)
        self._listening = False
        self._warned = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self.address
        scheme = "https" if self._certificates else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    @property
    def alive(self) -> bool:
        """Whether it serves; False after a fault of its own, and when it was closed."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stops serving and frees the port; a second call does nothing."""
        with contextlib.suppress(OSError):
            self._close_signal.send(b"x")
        self._thread.join(CLOSE_SECONDS)
        self._close_signal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            while self._turn():
                pass
            self._finish()
        finally:
            for connection in list(self._connections.values()):
                self._drop(connection)
            self._selector.close()
            self._listener.close()
            self._closing.close()

    def _turn(self) -> bool:
        """One round of what can be done now; False when the server is to close."""
        self._listen(self._has_room())
        for key, _ in self._selector.select(self._patience()):
            if key.fileobj is self._closing:
                return False
            if key.fileobj is self._listener:
                self._accept()
            else:
                self._advance(key.data)
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if now >= connection.deadline:
                self._drop(connection)
        return True

    def _finish(self) -> None:
        """Who was let in and asks gets an answer. The others wait in the listener, which can be one
        of the service manager's, for whoever serves next."""
        self._selector.unregister(self._closing)
        self._listen(False)
        end = time.monotonic() + LAST_SECONDS
        while self._connections and (left := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                self._advance(key.data)

    def _oldest(self) -> _Connection | None:
        return next(iter(self._connections.values()), None)

    def _has_room(self) -> bool:
        """Whether one more connection can be taken, if need be in the place of the oldest."""
        oldest = self._oldest()
        return (
            oldest is None
            or len(self._connections) < CONNECTIONS
            or time.monotonic() >= oldest.accepted + GRACE_SECONDS
        )

    def _patience(self) -> float | None:
        """Seconds until something is due even if no socket has news."""
        due = [connection.deadline for connection in self._connections.values()]
        oldest = self._oldest()
        if oldest is not None and not self._listening:
            due.append(oldest.accepted + GRACE_SECONDS)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _listen(self, wanted: bool) -> None:
        """Newcomers that there is no room for wait in the kernel's backlog, not here."""
        if wanted and not self._listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif not wanted and self._listening:
            self._selector.unregister(self._listener)
        self._listening = wanted

    def _accept(self) -> None:
        """Takes waiting connections, in small lots: those that are here speak in between.

        When the house is full, the one that has been here longest goes: a real scraper sends its
        request at once and takes its answer at once, so it is the least likely to be one.
        """
        for _ in range(_ACCEPTS_A_TURN):
            if not self._has_room():
                return
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:
                self._not_accepted(error)
                return
            if len(self._connections) >= CONNECTIONS:
                self._drop_oldest()
            accepted.setblocking(False)
            now = time.monotonic()
            step = _Step.HELLO if self._certificates else _Step.REQUEST
            connection = _Connection(accepted, accepted.fileno(), now, now + REQUEST_SECONDS, step)
            self._connections[connection.fd] = connection
            self._selector.register(connection.fd, selectors.EVENT_READ, connection)

    def _not_accepted(self, error: OSError) -> None:
        # Without a descriptor the kernel does not even look whether a connection waits.
        out_of_something = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
        if out_of_something and self._is_awaited():
            if not self._warned:
                log.warning("cannot accept a metrics connection: %s", error.strerror)
                self._warned = True
            self._drop_oldest()
            time.sleep(0.1)  # the connection still waits: without a pause this would spin

    def _is_awaited(self) -> bool:
        """Whether a connection waits to be accepted."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        return bool(poll.poll(0))

    def _drop_oldest(self) -> None:
        oldest = self._oldest()
        if oldest is not None:
            self._drop(oldest)

    def _drop(self, connection: _Connection) -> None:
        del self._connections[connection.fd]
        self._selector.unregister(connection.fd)
        connection.socket.close()

    def _advance(self, connection: _Connection) -> None:
        if self._connections.get(connection.fd) is not connection:
            return  # made room for another in this very turn
        awaited: int | None
        try:
            awaited = connection.awaited if self._take_step(connection) else None
        except BlockingIOError:
            awaited = connection.awaited
        except OSError as error:  # the client went away, in one of many ways; or TLS has to wait
            awaited = connection.secure.awaited(error) if connection.secure else None
        if awaited is None:
            self._drop(connection)
        elif awaited != self._selector.get_key(connection.fd).events:
            self._selector.modify(connection.fd, awaited, connection)

    def _take_step(self, connection: _Connection) -> bool:
        """False when the connection is at its end; an OSError, too, unless it is to be waited."""
        match connection.step:
            case _Step.HELLO:
                return self._greet(connection)
            case _Step.HANDSHAKE:
                return self._shake_hands(connection)
            case _Step.REQUEST:
                return self._receive(connection)
            case _Step.ANSWER:
                return self._send(connection)
            case _Step.FAREWELL:
                return self._say_goodbye(connection)
            case _Step.DRAIN:
                return bool(connection.socket.recv(REQUEST_BYTES))
            case _:
                assert_never(connection.step)

    def _greet(self, connection: _Connection) -> bool:
        first = connection.socket.recv(1, socket.MSG_PEEK)
        if first != _TLS_HANDSHAKE or not self._certificates:
            connection.step = _Step.REQUEST
            return bool(first)
        connection.secure = self._certificates.secure(connection.socket)
        connection.socket = connection.secure.socket
        connection.step = _Step.HANDSHAKE
        return self._shake_hands(connection)

    def _shake_hands(self, connection: _Connection) -> bool:
        if connection.secure and not connection.secure.shake_hands():
            return self._hang_up(connection)
        connection.step = _Step.REQUEST
        return self._receive(connection)

    def _receive(self, connection: _Connection) -> bool:
        # With TLS, too, nothing is left behind that the selector does not see: OpenSSL reads one
        # record, and all of it is taken unless that makes the request too large.
        received = connection.socket.recv(REQUEST_BYTES + 1 - len(connection.request))
        if not received:
            return False
        connection.request += received
        head, end, _ = connection.request.partition(b"\r\n\r\n")
        if not end and len(connection.request) <= REQUEST_BYTES:
            return True
        untaken = [other for other in self._connections.values() if other.answer]
        if len(untaken) >= ANSWERS:
            self._drop(untaken[0])
        connection.answer = memoryview(self._answer(connection, head if end else None))
        connection.request = b""
        connection.deadline = time.monotonic() + ANSWER_SECONDS
        connection.step = _Step.ANSWER
        return self._send(connection)

    def _answer(self, connection: _Connection, head: bytes | None) -> bytes:
        if head is None:
            return response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if self._certificates and not connection.secure:
            return response(HTTPStatus.BAD_REQUEST, b"400 TLS is spoken here: write https://\n")
        return answer(head, self._render)

    def _send(self, connection: _Connection) -> bool:
        sent = connection.socket.send(connection.answer[:_SEND_BYTES])
        connection.answer = connection.answer[sent:]
        if connection.answer:
            return True
        connection.step = _Step.FAREWELL
        return self._say_goodbye(connection)

    def _say_goodbye(self, connection: _Connection) -> bool:
        if connection.secure:
            connection.secure.say_goodbye()
        return self._hang_up(connection)

    def _hang_up(self, connection: _Connection) -> bool:
        """Says no more. Closing now, with something of the client's unread, would make the kernel
        send a reset, which can overtake the answer: the client is to close first."""
        connection.step = _Step.DRAIN
        connection.deadline = min(connection.deadline, time.monotonic() + REQUEST_SECONDS)
        connection.socket.shutdown(socket.SHUT_WR)
        return True


_REMEDIES = {
    errno.EADDRINUSE: "another process listens there (ss -ltnp names it): stop it, or choose"
    " another port in metrics.listen",
    errno.EADDRNOTAVAIL: "no interface of this machine has this address: correct metrics.listen",
    errno.EACCES: "ports below 1024 take CAP_NET_BIND_SERVICE: choose another in metrics.listen",
}


def _listening(host: str, port: int) -> socket.socket:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KeeperError(
            f"cannot listen on {place}: {reason}: write an address of this machine into"
            " metrics.listen"
        ) from error
    family, kind, protocol, _, address = found[0]
    try:
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        number = error.errno or 0
        text = f"cannot listen on {place}: {os.strerror(number)}"
        remedy = _REMEDIES.get(number, "")
        raise KeeperError(f"{text}: {remedy}" if remedy else text) from error
    return listener


def _inherited(listener: socket.socket) -> socket.socket:
    if (
        listener.family not in (socket.AF_INET, socket.AF_INET6)
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise KeeperError(
            "cannot serve metrics on the inherited socket: it is no listening TCP socket:"
            " correct ListenStream= of the socket unit"
        )
    return listener
