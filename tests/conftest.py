"""Fixtures of all tests: BPF objects compiled from source, places of a test's own, no leaks."""

import os
import platform
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings

from bpfkeeperd import kernel
from tests.machine import (
    IN_GUEST,
    Netns,
    adopt_orphans,
    bpf_ids,
    bpf_object,
    children,
    enter_mount_namespace,
    others_hold,
)

BPF_SOURCES = (Path(__file__).parent / "bpf", Path(__file__).parents[1] / "bpf")
"""The tests' own programs, and those that are installed."""

BuildObject = Callable[..., Path]
LEFT_SECONDS = 60.0
"""How long something may stay in the kernel after the last test: longer than any test is."""

settings.register_profile("unhurried", deadline=None)  # other tests may run beside these
settings.load_profile("unhurried")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def pytest_sessionstart() -> None:
    """The tests' mounts and names of network namespaces are seen by their own processes only, and
    end with them.

    Else daemons of other runs on this machine would wake up at each, and a tracefs could go away
    that another run found mounted. In a guest of `tests.systemd` the service has to see them.
    """
    os.umask(0o022)  # files that a group can write to are not taken
    if os.geteuid() == 0:
        if not IN_GUEST:
            enter_mount_namespace()
        adopt_orphans()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the kernel and of the daemon need root; on CI nobody may lack it."""
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    for item in items:
        if {"kernel", "system", "examples"} & set(Path(item.path).parts):
            item.add_marker(needs_root)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No program or map of the tests' own objects may be left when all tests are over.

    A link holds its program, so links need no look of their own. Programs and maps are told from
    those of others on this machine by their names and by where the sources of their object were
    (`build_object`); those without BTF by who uses them. Some that are only pinned somewhere else
    look like the tests' own all the same: what is of other tests goes away with these.
    """
    if os.geteuid() != 0:
        yield
        return
    before = {kind: bpf_ids(kind) for kind in ("prog", "map")}
    yield
    assert not children(), f"processes left behind: {children()}"
    suspects = {kind: bpf_ids(kind) - ids for kind, ids in before.items()}
    basetemp = tmp_path_factory.getbasetemp()
    own = _names_in(basetemp)
    # The kernel frees them some time after the last reference. Until then no map is opened by its
    # ID: a program array that is let go of once more while the kernel empties it is never freed.
    settled = time.monotonic() + 2
    while any(bpf_ids(kind) & ids for kind, ids in suspects.items()) and time.monotonic() < settled:
        time.sleep(0.05)
    deadline = time.monotonic() + LEFT_SECONDS
    while left := _left(suspects, own, f"{basetemp}/".encode()):
        assert time.monotonic() < deadline, f"left behind in the kernel: {left}"
        time.sleep(0.1)


def _left(suspects: dict[str, set[int]], own: set[str], sources: bytes) -> list[str]:
    """Which of these are there yet, and are of the tests' own objects."""
    left, maps_of_others = list[str](), set[int]()
    for kind in ("prog", "map"):
        for number in bpf_ids(kind) & suspects[kind]:
            found = bpf_object(kind, number)
            if found is None:
                continue
            if found.btf and sources not in found.btf:
                maps_of_others |= found.maps
            elif found.name in own and number not in (maps_of_others if kind == "map" else ()):
                left.append(f"{kind} {number} ({found.name})")
    return [one for one in left if not others_hold(one.split()[0], int(one.split()[1]))]


def _names_in(directory: Path) -> set[str]:
    """What the kernel calls the programs and maps of all objects the tests compiled."""
    names = set()
    for path in directory.glob("objects*/*.bpf.o"):
        with kernel.open_object(path.read_bytes(), "x") as opened:
            names |= {spec.name[:15] for spec in opened.spec.maps}
            names |= {spec.name[:15] for spec in opened.spec.programs}
    return names


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """A test closes what it opens."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 2  # threads of a server that was just closed
    while (left := set(os.listdir("/proc/self/fd")) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    targets = []
    for fd in left:
        try:
            targets.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the listing's own
    assert not targets, f"descriptors left open: {targets}"


@pytest.fixture(scope="session")
def build_object(tmp_path_factory: pytest.TempPathFactory) -> BuildObject:
    """Compiles tests/bpf/NAME.bpf.c or bpf/NAME.bpf.c with macros, once for each set of them."""
    directory = tmp_path_factory.mktemp("objects")
    built: dict[tuple[object, ...], Path] = {}
    include = f"/usr/include/{platform.machine()}-linux-gnu"

    def build(name: str, **macros: object) -> Path:
        key = (name, *sorted(macros.items()))
        if key not in built:
            path = directory / f"{name}{len(built)}.bpf.o"
            flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", "-I", include]
            defines = [f"-D{macro}={value}" for macro, value in macros.items()]
            sources = [directory / f"{name}.bpf.c" for directory in BPF_SOURCES]
            source = next(source for source in sources if source.exists())
            # The names of sources, of which BTF tells, say who it was that built an object.
            flags.append(f"-ffile-prefix-map={source.parent}={directory}")
            command = ["clang", *flags, *defines, "-c", str(source), "-o", str(path)]
            subprocess.run(command, check=True)
            subprocess.run(["llvm-strip", "-g", str(path)], check=True)
            built[key] = path
        return built[key]

    return build


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def mounted_bpffs(directory: Path) -> Iterator[Path]:
    """A new bpffs, unmounted afterwards with whatever is pinned in it; in a guest where the service
    may write to one."""
    path = Path("/sys/fs/bpf") if IN_GUEST else directory / "bpffs"
    path.mkdir(exist_ok=IN_GUEST)
    if IN_GUEST:
        subprocess.run(["umount", str(path)], check=False)
    _mount("-t", "bpf", "bpf", str(path))
    try:
        yield path
    finally:
        while os.path.ismount(path):
            subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own."""
    with mounted_bpffs(tmp_path) as path:
        yield path


@contextmanager
def child_cgroup() -> Iterator[Path]:
    """A new cgroup, removed afterwards with all that is in it.

    It is below one of this run's: what others make beside that is nothing that a daemon watches.
    """
    mount = kernel.cgroup2_mount()
    assert mount, "no cgroup2 is mounted"
    path = Path(mount) / f"bpfkeeperd-test-{os.getpid()}" / uuid.uuid4().hex[:8]
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        for directory, _, _ in os.walk(path, topdown=False):
            end_all_in(Path(directory))
            deadline = time.monotonic() + 5
            while True:
                try:
                    os.rmdir(directory)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        with suppress(OSError):  # another one is in it
            path.parent.rmdir()


def end_all_in(cgroup: Path) -> None:
    """Kills what is in a cgroup; one by one before Linux 5.14."""
    kill = cgroup / "cgroup.kill"
    if kill.exists():
        kill.write_text("1")
        return
    for process in (cgroup / "cgroup.procs").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A child cgroup of the test's own."""
    with child_cgroup() as path:
        yield path


@pytest.fixture
def netns() -> Iterator[Netns]:
    """Two network namespaces of the test's own, joined by a veth pair: ``here`` and ``there``."""
    name = f"keeper-{uuid.uuid4().hex[:8]}"
    pair = Netns(name)
    try:
        pair.make()
        yield pair
    finally:
        pair.remove()


def make_places(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State and run directories below a directory, in the environment; in a guest the service's."""
    for name, variable, of_service in (
        ("state", "STATE_DIRECTORY", "/var/lib/bpfkeeperd"),
        ("run", "RUNTIME_DIRECTORY", "/run/bpfkeeperd"),
    ):
        if IN_GUEST:
            shutil.rmtree(of_service, ignore_errors=True)
            os.mkdir(of_service, 0o700)
            (directory / name).symlink_to(of_service)
        else:
            (directory / name).mkdir()
        monkeypatch.setenv(variable, str(directory / name))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and run directories of the test's own, in the environment."""
    make_places(tmp_path, monkeypatch)
    return tmp_path
