"""A plain libbpf program that attached an object before the keeper came."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCE = Path(__file__).parent / "plain_attach.c"


@dataclass(frozen=True, slots=True)
class Outsider:
    process: subprocess.Popen[str]
    attached: tuple[tuple[int, int], ...]
    """Program ID, and link ID (0: none), of each program."""

    @property
    def program(self) -> int:
        return self.attached[0][0]

    @property
    def link(self) -> int:
        return self.attached[0][1]

    def leave(self) -> None:
        """It lets go of everything; what it pinned, or attached without a link, stays."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@cache
def _directory() -> TemporaryDirectory[str]:
    """Removed when this process ends."""
    return TemporaryDirectory(prefix="plain_attach")


@cache
def _program() -> str:
    path = f"{_directory().name}/plain_attach"
    subprocess.run(["gcc", "-O2", "-Wall", str(SOURCE), "-o", path, "-lbpf"], check=True)
    return path


@contextmanager
def outsider(
    object_file: Path, pin_root: Path, how: str, target: object, links: Path | None = None
) -> Iterator[Outsider]:
    """Starts it; it holds what it made until it leaves."""
    command = [_program(), str(object_file), str(pin_root), str(links or "-"), how, str(target)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        lines = list(iter(process.stdout.readline, "-\n")) if process.poll() is None else []
        attached = tuple((int(line.split()[0]), int(line.split()[1])) for line in lines if line)
        assert attached, "it failed"
        found = Outsider(process, attached)
        try:
            yield found
        finally:
            if process.poll() is None:
                found.leave()
