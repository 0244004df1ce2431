"""Debian's Prometheus and promtool, unpacked and not installed; and a server of the test's own."""

import functools
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.aptfetch import FetchError, fetch_package

UNPACKED = Path(__file__).parents[2] / ".tools" / "prometheus"
WAIT_SECONDS = 60.0


@functools.cache
def _missing() -> FetchError | None:
    """Why there is no Prometheus; fetches it if it is not there yet."""
    try:
        fetch_package("prometheus", UNPACKED)
    except FetchError as error:
        return error
    return None


def tool(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``.

    Without a network to fetch them from a test is skipped; on CI it fails.
    """
    if error := _missing():
        if os.environ.get("CI"):
            raise error
        pytest.skip(f"there is no Prometheus: {error}")
    return str(UNPACKED / "usr" / "bin" / name)


def promtool(*arguments: object, text: str = "") -> tuple[int, str]:
    """The exit code, and all that it says."""
    command = [tool("promtool"), *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Sample:
    labels: dict[str, str]
    value: float


class Prometheus:
    """A server with a configuration, on loopback; a context manager that ends it."""

    def __init__(self, config: Path, directory: Path) -> None:
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        self.wait("ready", lambda: "Server is ready" in self.log and bool(self._addresses()))

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never {what}:\n{self.log}"
            assert self._process.poll() is None, f"it ended:\n{self.log}"
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def _addresses(self) -> list[str]:
        return re.findall(r'msg="Listening on" address=(\S+)', self.log)

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of an answer; a query that is wrong fails the test with what the server says."""
        (address,) = self._addresses()
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://{address}/api/v1/{path}?{query}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str, at: float | None = None) -> Sequence[Sample]:
        """The samples of now, or of a Unix time."""
        found = self.get("query", query=expression, time=str(at or time.time()))
        assert found["resultType"] == "vector", found
        return [Sample(one["metric"], float(one["value"][1])) for one in found["result"]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
