import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import pytest

from tests.scenario import World, world
from tests.system.process import DaemonProcess
from tests.system.store import Store

__all__ = ["start", "world"]


class Start(Protocol):
    """Starts a daemon of the test's world and waits until it is ready, if it is to be.

    ``pace`` are arguments of `bpfkeeperd.backoff.Pace`, ``sockets`` are passed as the service
    manager passes them, under these names, ``store`` is what it keeps, ``prefix`` a program that
    runs the daemon, and ``code`` runs in the place of `bpfkeeperd.__main__`.
    """

    def __call__(
        self,
        *,
        ready: bool = True,
        look_seconds: float | None = None,
        pace: str = "",
        variables: Mapping[str, str] | None = None,
        sockets: Sequence[tuple[str, socket.socket]] = (),
        store: Store | None = None,
        options: Sequence[str] = (),
        code: str = "",
        prefix: Sequence[str] = (),
    ) -> DaemonProcess: ...


@pytest.fixture
def start(world: World) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_daemon(
            *,
            ready: bool = True,
            look_seconds: float | None = None,
            pace: str = "",
            variables: Mapping[str, str] | None = None,
            sockets: Sequence[tuple[str, socket.socket]] = (),
            store: Store | None = None,
            options: Sequence[str] = (),
            code: str = "",
            prefix: Sequence[str] = (),
        ) -> DaemonProcess:
            daemon = DaemonProcess(
                world,
                look_seconds=look_seconds,
                pace=pace,
                variables=variables,
                sockets=sockets,
                store=store,
                options=options,
                code=code,
                prefix=prefix,
            )
            stack.enter_context(daemon)
            if ready:
                daemon.wait_ready()
            return daemon

        yield start_daemon
