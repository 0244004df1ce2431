"""Places of the benchmark's own: a directory, a bpffs, cgroups, compiled programs; all of it is
gone afterwards."""

import os
import platform
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpfkeeperd import kernel

SOURCES = Path(__file__).parent
BUNDLED = Path(kernel.__file__).parents[1] / "bpf"
"""The objects that come with the keeper."""


@dataclass(frozen=True, slots=True)
class Places:
    directory: Path
    bpffs: Path
    cgroups: Path

    def pin_root(self, name: str) -> Path:
        """A directory on the bpffs."""
        path = self.bpffs / name
        path.mkdir(mode=0o700)
        return path

    def cgroup(self, *names: str) -> Path:
        path = self.cgroups.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def compile_c(self, name: str, *libraries: str) -> Path:
        """A program of this directory, compiled once."""
        path = self.directory / name
        if not path.exists():
            source = SOURCES / f"{name}.c"
            subprocess.run(["gcc", "-O2", "-o", str(path), str(source), *libraries], check=True)
        return path

    def compile_bpf(self, name: str, **macros: object) -> bytes:
        """A BPF object of this directory or the tests', without its debug information."""
        path = self.directory / f"{name}.bpf.o"
        include = f"/usr/include/{platform.machine()}-linux-gnu"
        defines = [f"-D{macro}={value}" for macro, value in macros.items()]
        flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", "-I", include, *defines]
        directories = SOURCES, SOURCES.parent / "bpf"
        sources = [directory / f"{name}.bpf.c" for directory in directories]
        source = next(source for source in sources if source.exists())
        subprocess.run(["clang", *flags, "-c", str(source), "-o", str(path)], check=True)
        subprocess.run(["llvm-strip", "-g", str(path)], check=True)
        return path.read_bytes()


@contextmanager
def own_places() -> Iterator[Places]:
    """Makes the places, and takes them away with all that was put there."""
    mount = kernel.cgroup2_mount()
    if mount is None:
        raise SystemExit("cannot measure: no cgroup2 is mounted: mount -t cgroup2 none DIRECTORY")
    with ExitStack() as stack:
        prefix = "bpfkeeperd-bench-"
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        cgroups = Path(mount) / f"{prefix}{uuid.uuid4().hex[:8]}"
        cgroups.mkdir()
        stack.callback(_remove_cgroups, cgroups)
        bpffs = directory / "bpffs"
        bpffs.mkdir()
        subprocess.run(["mount", "-t", "bpf", "bpf", str(bpffs)], check=True)
        stack.callback(subprocess.run, ["umount", "-l", str(bpffs)], check=True)
        yield Places(directory, bpffs, cgroups)


def _remove_cgroups(root: Path) -> None:
    for directory, _, _ in os.walk(root, topdown=False):
        os.rmdir(directory)


@dataclass(slots=True)
class ObjectSet:
    """Many objects of one program, each with maps of its own, in two versions ``a`` and ``b``.

    ``current`` is a link to the version of now, so that all files change at once.
    """

    directory: Path
    names: tuple[str, ...]
    program: str
    version: str = "a"

    @property
    def files(self) -> list[str]:
        """The names of the files of either version."""
        return [f"{name}.bpf.o" for name in self.names]

    @property
    def current(self) -> Path:
        return self.directory / "current"

    def change(self) -> None:
        """Has ``current`` point to the other version."""
        self.version = "b" if self.version == "a" else "a"
        self._point()

    def _point(self) -> None:
        new = self.directory / "new"
        new.symlink_to(self.version)
        new.rename(self.current)

    @classmethod
    def make(cls, places: Places, source: str, program: str, count: int) -> "ObjectSet":
        """Compiles both versions once; a map's name ends in 000, which becomes the object's number.

        A name of the same length can be exchanged in an object without moving anything.
        """
        made = cls(
            places.directory / f"{source}-objects",
            tuple(f"{source}{number:03}" for number in range(count)),
            program,
        )
        for version, macro in (("a", 1), ("b", 2)):
            data = places.compile_bpf(source, VERSION=macro)
            directory = made.directory / version
            directory.mkdir(parents=True, exist_ok=True)
            for number, file in enumerate(made.files):
                own = data.replace(b"_000\0", f"_{number:03}\0".encode())
                (directory / file).write_bytes(own)
        made._point()
        return made

    def manifest(self, cgroups: Path) -> str:
        """Each object attached to a cgroup of its own, as plain_loader numbers them."""
        lines = ["objects:"]
        for number, (name, file) in enumerate(zip(self.names, self.files, strict=True)):
            attach = f"{{attach: [{{cgroup: {cgroups / str(number)}}}]}}"
            lines += [
                f"  {name}:",
                f"    file: {self.current / file}",
                f"    programs: {{{self.program}: {attach}}}",
            ]
        return "\n".join(lines)
