"""The daemon as a process, on a manifest and in places of its own."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfkeeperd.control import control_path, request_reload
from bpfkeeperd.errors import KeeperError, NoDaemonError
from bpfkeeperd.state import Outcome, ReloadResult
from tests.bench.places import Places

START_SECONDS = 60.0


class BenchError(Exception):
    """What is measured did not do what it is measured for."""


class DaemonProcess:
    """A running daemon; a context manager that stops it. What it pinned stays."""

    def __init__(
        self, places: Places, name: str, manifest: str, drop_ins: Sequence[str] = ()
    ) -> None:
        directory = places.directory / name
        directory.mkdir()
        self._log = directory / "log"
        self._manifest = directory / "bpfkeeperd.yaml"
        root = places.pin_root(name)
        listen = "" if "metrics:" in manifest else "metrics: {listen: '127.0.0.1:0'}"
        self._manifest.write_text(f"version: 1\npin_root: {root}\n{listen}\n{manifest}\n")
        for number, text in enumerate(drop_ins):
            (directory / "conf.d").mkdir(exist_ok=True)
            (directory / "conf.d" / f"{number}.yaml").write_text(text)
        self._control = control_path(str(directory), str(self._manifest))
        command = [sys.executable, "-m", "bpfkeeperd", "run", "--config", str(self._manifest)]
        command += ["--state-dir", str(directory), "--run-dir", str(directory)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.reload()
                return
            except NoDaemonError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"the daemon did not start:\n{self.log}") from None
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    def reload(self, expect_done: int | None = None) -> tuple[float, Outcome]:
        """Has it reload; the seconds that took as seen from here, and the outcome.

        Raises:
            NoDaemonError: it does not listen, or not yet.
            BenchError: it failed, or did another number of things than was expected.
        """
        started = time.perf_counter()
        try:
            outcome = request_reload(self._control, force=False, wait=True, timeout_seconds=300)
        except NoDaemonError:
            raise
        except KeeperError as error:
            raise BenchError(f"{error}; its log ends:\n{self.log[-4000:]}") from None
        seconds = time.perf_counter() - started
        assert outcome
        if outcome.result is not ReloadResult.OK:
            raise BenchError(f"the reload failed:\n{self.log[-4000:]}")
        if expect_done is not None and len(outcome.done) != expect_done:
            raise BenchError(
                f"the reload did {len(outcome.done)} things, not {expect_done}: {outcome.done[:5]}"
            )
        return seconds, outcome

    @property
    def metrics_address(self) -> tuple[str, int]:
        """Host and port of its metrics."""
        found = re.search(r"http://([^/]+):(\d+)/metrics", self.log)
        if not found:
            raise BenchError(f"no metrics are served:\n{self.log}")
        return found[1], int(found[2])

    def scrape(self) -> str:
        """Its metrics, over HTTP."""
        host, port = self.metrics_address
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def resident_bytes(pid: int) -> int:
    """What a process has in memory, pages that it shares included."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def cpu_ticks(pid: int) -> int:
    """CPU time of a process, user and system, in ticks of 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
