"""A terminal that tests can type into and look at: tmux, with a server of the test's own."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.scenario import World
from tests.system.process import ROOT, environment

WAIT_SECONDS = 30.0
PROMPT = "% "


class Terminal:
    """One window, with a shell in it; made by `terminal`."""

    def __init__(self, socket: Path, variables: Mapping[str, str]) -> None:
        self._socket = socket
        self._variables = variables
        self._runs = 0

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-f", "/dev/null", "-S", str(self._socket), *arguments],
            env=_environment(self._variables),
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_SECONDS,
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def text(self, *options: str) -> list[str]:
        """The lines of the window; with ``-e`` as they are coloured."""
        return self.tmux("capture-pane", "-p", *options).rstrip("\n").split("\n")

    def flag(self, name: str) -> str:
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip()

    def resize(self, columns: int, lines: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def wait(self, condition: Callable[[list[str]], object]) -> list[str]:
        """The lines as soon as they are so."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition(lines := self.text()):
            assert time.monotonic() < deadline, "\n".join(["not so in time:", *lines])
            time.sleep(0.05)
        return lines

    def run(self, command: str) -> tuple[list[str], int]:
        """Runs a command on an empty screen; the lines it shows, and its exit code."""
        self._runs += 1
        mark = f"code{self._runs}="
        self.keys(f'clear; {command}; echo "{mark}$?"', "Enter")
        lines = self.wait(lambda lines: any(re.match(rf"{mark}\d", line) for line in lines))
        end = next(place for place, line in enumerate(lines) if line.startswith(mark))
        return lines[:end], int(lines[end].removeprefix(mark))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    unwanted = ("LC_", "LANG", "TMUX", "TERM", "NO_COLOR", "COLUMNS", "LINES")
    kept = {name: value for name, value in environment().items() if not name.startswith(unwanted)}
    return {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm", **more}


@contextmanager
def terminal(world: World, columns: int, lines: int, **variables: str) -> Iterator[Terminal]:
    """A window of this size. In its shell, ``k COMMAND OPTIONS`` is bpfkeeperd on the world's
    manifest."""
    script = world.directory / "k"
    command = [sys.executable, "-m", "bpfkeeperd"]
    script.write_text(
        f"#!/bin/sh\ncd {shlex.quote(str(ROOT))}\ncommand=$1; shift\n"
        f'exec {shlex.join(command)} "$command" -c {shlex.quote(str(world.manifest_file))} "$@"\n'
    )
    script.chmod(0o755)
    path = f"{world.directory}:{os.environ['PATH']}"
    socket = world.directory / f"tmux-{columns}"
    window = Terminal(socket, {"PS1": PROMPT, "PATH": path, **variables})
    window.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), "sh", "-i")
    server = int(window.flag("pid"))
    try:
        yield window
    finally:
        window.tmux("kill-server")
        os.waitpid(server, 0)  # its parent went, and this process adopts orphans
