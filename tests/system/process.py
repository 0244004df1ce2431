"""The daemon as a process of its own, and all that can be seen of it from outside."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.activation import passing_descriptors
from tests.machine import IN_GUEST
from tests.scenario import World
from tests.system.store import Store

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0
NO_METRICS = "metrics: {listen: none}"
METRICS = 'metrics: {listen: "127.0.0.1:0"}'

Message = Mapping[str, str]
"""One notification, as variable to value."""

_LOOK_OFTEN = (
    "import sys; from bpfkeeperd import daemon, healer; from bpfkeeperd.__main__ import main;"
    " daemon.LOOK_SECONDS = {seconds}; healer.PACE = healer.Pace({pace}); sys.exit(main())"
)


def environment() -> dict[str, str]:
    """That of the tests, without what would change how a daemon or a command behaves."""
    foreign = ("WATCHDOG", "LISTEN_", "NOTIFY_SOCKET", "PYTHONUNBUFFERED", "JOURNAL_STREAM")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def cli(
    world: World, *arguments: str, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs one command on the world's manifest; ``prefix`` is a program that runs it."""
    command, *options = arguments
    program = [*prefix, sys.executable, "-m", "bpfkeeperd", command]
    return subprocess.run(
        [*program, "-c", str(world.manifest_file), *options],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Notifications:
    """Stands in for the service manager: keeps every message in the order of arrival, and what
    descriptors come with them in a store, if there is one."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        name = f"bpfkeeperd-test-{uuid.uuid4().hex}"
        self.address = f"@{name}"  # abstract: a path could be too long
        self._path = f"\0{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._arrived = threading.Condition()
        self._messages: list[Message] = []
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, 64)
            if not data:
                return
            lines = data.decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            if self._store:
                self._store.obey(message, fds)
            for fd in fds if not self._store else ():
                os.close(fd)
            with self._arrived:
                self._messages.append(message)
                self._arrived.notify_all()

    @property
    def all(self) -> list[Message]:
        with self._arrived:
            return list(self._messages)

    def having(self, variable: str) -> list[Message]:
        return [message for message in self.all if variable in message]

    def wait(self, variable: str, count: int, alive: Callable[[], bool]) -> Message:
        """The count-th message that sets a variable, from 1."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._arrived:
            while True:
                found = [message for message in self._messages if variable in message]
                if len(found) >= count:
                    return found[count - 1]
                assert time.monotonic() < deadline, f"no {variable} in time: {self._messages}"
                assert alive(), f"the daemon ended without {variable}: {self._messages}"
                self._arrived.wait(0.1)

    def close(self) -> None:
        self._socket.sendto(b"", self._path)
        self._thread.join()
        self._socket.close()


class Running(Protocol):
    """What is used of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def _spawn(
    command: Sequence[str], variables: Mapping[str, str], log: Path, fds: Sequence[int]
) -> Running:
    """Starts a daemon; in a guest of `tests.systemd` as its unit says, else as a child."""
    if IN_GUEST and not fds:
        from tests.systemd.asservice import Service

        return Service(command, variables, log)
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=fds,
        )


class DaemonProcess:
    """A daemon of the world's manifest; a context manager that ends it, by SIGKILL if need be."""

    def __init__(
        self,
        world: World,
        *,
        look_seconds: float | None = None,
        pace: str = "",
        variables: Mapping[str, str] | None = None,
        sockets: Sequence[tuple[str, socket.socket]] = (),
        store: Store | None = None,
        options: Sequence[str] = (),
        code: str = "",
        prefix: Sequence[str] = (),
    ) -> None:
        self._world = world
        self._prefix = prefix
        self.notifications = Notifications(store)
        self._log = world.directory / f"daemon-{uuid.uuid4().hex}.log"
        program = ["-c", code] if code else ["-m", "bpfkeeperd"]
        if look_seconds is not None or pace:
            program = ["-c", _LOOK_OFTEN.format(seconds=look_seconds or 30, pace=pace)]
        command = [*prefix, sys.executable, *program, "run", "-c", str(world.manifest_file)]
        command += options
        passed = [(name, each.fileno()) for name, each in sockets]
        passed += store.passed if store else []
        self._process = _spawn(
            passing_descriptors(command, passed) if passed else command,
            {"NOTIFY_SOCKET": self.notifications.address, **(variables or {})},
            self._log,
            [fd for _, fd in passed],
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self, count: int = 1) -> str:
        """Waits until it said READY so many times; the STATUS of that time."""
        try:
            return self.notifications.wait("READY", count, self.alive)["STATUS"]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def wait_log(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while self.log.count(text) < count:
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.log}"
            assert self.alive(), f"it ended:\n{self.log}"
            time.sleep(0.01)

    def wait_exit(self) -> int:
        """The exit code; minus the signal's number when one ended it."""
        return self._process.wait(WAIT_SECONDS)

    def wait_exit_or_ready(self) -> int | None:
        """The exit code; None when it is ready instead."""
        while self.alive():
            if self.notifications.having("READY"):
                return None
            time.sleep(0.005)
        return self.wait_exit()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def hup(self) -> str:
        """One reload by SIGHUP, to its end; the STATUS it ends with."""
        ready = len(self.notifications.having("READY"))
        self.signal(signal.SIGHUP)
        return self.wait_ready(ready + 1)

    def reload(self, *options: str) -> subprocess.CompletedProcess[str]:
        """One reload by the command line, to its end."""
        return cli(self._world, "reload", "--wait", *options, prefix=self._prefix)

    def stop(self) -> int:
        """Ends it as the service manager does; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait_exit()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait_exit()

    @property
    def metrics_url(self) -> str:
        found: list[str] = re.findall(r"metrics are served at (https?://\S+)", self.log)
        return found[-1]

    def metrics(self) -> dict[str, float]:
        """A scrape: ``name{label="value"}`` to value."""
        with urllib.request.urlopen(self.metrics_url, timeout=5) as answer:
            text = answer.read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in samples}

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def open_files(self) -> list[str]:
        """What its descriptors are of."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(os.readlink(link))
        return found

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def cpu_ticks(self) -> int:
        """CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def wakeups(self) -> int:
        """How often one of its threads has gone to wait for something."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/status")
        return sum(
            int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", task.read_text(), re.M)[0])
            for task in tasks
        )

    def wait_idle(self) -> None:
        """Until it has slept for a second."""
        deadline = time.monotonic() + WAIT_SECONDS
        before, last = -1, self.wakeups()
        while before != last:
            assert time.monotonic() < deadline, f"it does not come to rest:\n{self.log}"
            time.sleep(1)
            before, last = last, self.wakeups()

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.alive():
            self.kill()
        self.notifications.close()


_SEND_UNTIL_TOLD = """
import select, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
sender, sent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
while not select.select([0], [], [], 0.0005)[0]:
    sender.sendto(b"x", ("127.0.0.1", 9))
    sent += 1
    if sent == 1:
        print("sending", flush=True)
print(sent)
"""


@contextmanager
def sending(cgroup: Path) -> Iterator[Callable[[], int]]:
    """A process in a cgroup that sends datagrams all the while.

    The callable has it stop and gives how many it sent.
    """
    command = [sys.executable, "-ISc", _SEND_UNTIL_TOLD, str(cgroup)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "sending\n"
        try:
            yield lambda: int(process.communicate()[0])
        finally:
            if process.poll() is None:
                process.kill()
