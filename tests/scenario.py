"""One test's world: a pin root, a cgroup, objects, a manifest, and a keeper of it."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.churn import IdChange, Memory
from bpfkeeperd.directories import pins_below
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.layout import Layout
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.state import Outcome, ReloadResult
from bpfkeeperd.steps import OnStep, no_failpoint
from bpfkeeperd.unload import unload
from tests.conftest import BuildObject
from tests.machine import events, map_id, send_datagrams


@dataclass(slots=True)
class World:
    directory: Path
    pins: Path
    cgroup: Path
    build: BuildObject
    changes: list[IdChange] = field(default_factory=list)

    @property
    def manifest_file(self) -> Path:
        return self.directory / "bpfkeeperd.yaml"

    @property
    def state_directory(self) -> str:
        return str(self.directory / "state")

    @property
    def layout(self) -> Layout:
        return Layout(str(self.pins))

    def put(self, name: str, /, source: str = "counter", **macros: object) -> Path:
        """Compiles an object and puts it, whole, where the manifest finds it."""
        path = self.directory / f"{name}.bpf.o"
        shutil.copy(self.build(source, **macros), f"{path}.new")
        os.replace(f"{path}.new", path)
        return path

    def write(self, text: str) -> None:
        """Writes the manifest; version and pin root are put in front."""
        text = text.replace("CGROUP", str(self.cgroup))
        self.manifest_file.write_text(f"version: 1\npin_root: {self.pins}\n{text}")

    def write_counter(self, *names: str, extra: str = "") -> None:
        """A manifest of counter objects, each keeping ``counts`` and attached to the cgroup."""
        lines = ["objects:"]
        for name in names:
            lines += [
                f"  {name}:",
                f"    file: {name}.bpf.o",
                "    pin_maps: [counts]",
                "    programs: {count: {attach: [{cgroup: CGROUP}]}}",
            ]
        self.write("\n".join([*lines, extra, ""]))

    @contextmanager
    def keeper(self, on_step: OnStep = no_failpoint) -> Iterator[Keeper]:
        keeper = Keeper(str(self.manifest_file), self.state_directory, on_step)
        try:
            yield keeper
        finally:
            keeper.close()

    def reload(self, keeper: Keeper, *, force: bool = False) -> Outcome:
        outcome, changes = keeper.reload(force=force)
        self.changes += changes
        return outcome

    def apply(self, *, force: bool = False) -> Outcome:
        """One reload by a keeper that starts, and goes."""
        with self.keeper() as keeper:
            return self.reload(keeper, force=force)

    def map_id(self, name: str = "counts") -> int | None:
        return map_id(self.pins / name)

    def events(self, name: str = "counts") -> tuple[int, int]:
        return events(self.pins / name)

    def link_ids(self) -> dict[str, tuple[int, int]]:
        """Path of each link's pin to link ID and program ID."""
        found = {}
        for pin in kernel.scan(self.layout.links, 3, kernel.PinKind.LINK):
            if len(pin.path) == 3:
                found["/".join(pin.path)] = (pin.id, pin.prog_id)
        return found

    def link_targets(self) -> list[int]:
        """Cgroup IDs and interface indexes of all pinned links; 0 where the target is gone."""
        pins = kernel.scan(self.layout.links, 3, kernel.PinKind.LINK)
        return [pin.target_id for pin in pins if len(pin.path) == 3]

    def link_pins(self, name: str) -> list[kernel.Pin]:
        """The links of an object."""
        pins = kernel.scan(self.layout.links, 3, kernel.PinKind.LINK)
        return [pin for pin in pins if len(pin.path) == 3 and pin.path[0] == name]

    def layout_files(self, name: str) -> list[Path]:
        """All pins below a directory of the keeper's own."""
        top = Path(self.layout.own) / name
        return [path for path in sorted(top.rglob("*")) if not path.is_dir()]

    def wait(self, condition: Callable[[], bool]) -> None:
        """For what the kernel does some time later."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def unload(self) -> list[str]:
        """Takes everything down but maps."""
        return unload(self.layout, Memory(kernel.boot_id(), {}), with_maps=False)[0]

    def program_ids(self) -> set[int]:
        """Of all pinned programs."""
        pins = kernel.scan(self.layout.objects, 3, kernel.PinKind.PROGRAM)
        return {pin.id for pin in pins if len(pin.path) == 3}

    def everything(self) -> dict[str, object]:
        """All that can be observed under the pin root: names, modes, IDs, what runs where."""
        seen: dict[str, object] = {}
        for directory, _, names in os.walk(self.pins):
            if directory.startswith(self.layout.staging):
                continue
            for name in names:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                seen[path] = (status.st_mode, status.st_uid, status.st_gid)
                layout = self.layout
                own = directory.startswith(
                    (layout.objects, layout.links, layout.stubs, layout.attached)
                )
                if not own and not name.endswith("debug"):
                    seen[f"map {path}"] = (map_id(Path(path)), contents(Path(path)))
        for pin in kernel.scan(self.layout.links, 3, kernel.PinKind.LINK):
            seen["links/" + "/".join(pin.path)] = pin
        for pin in kernel.scan(self.layout.attached, 3, kernel.PinKind.PROGRAM):
            seen["attached/" + "/".join(pin.path)] = pin
        for pin in kernel.scan(self.layout.objects, 3, kernel.PinKind.PROGRAM):
            seen["objects/" + "/".join(pin.path)] = pin
        for path in pins_below(self.layout.stubs, 3):
            if path.endswith("/slot"):
                pin_path = Path(self.layout.stubs, path)
                seen[f"stubs/{path}"] = (map_id(pin_path), contents(pin_path))
        for pin in kernel.scan(self.layout.stubs, 3, kernel.PinKind.PROGRAM):
            if pin.path[-1] == "stub":
                seen["stubs/" + "/".join(pin.path)] = pin
        return seen


def contents(path: Path) -> dict[bytes, bytes | None]:
    """Keys and values of a small pinned map, of each CPU where it has one for each; what a slot
    holds as its ID, and None of one that is empty."""
    found = kernel.pinned_map(str(path))
    assert found
    fd, info = found
    with kernel.holding(fd):
        if info.key_size == 0 or info.type in (15, 18):  # queues and sockets have none to read
            return {}
        known, size = BY_NUMBER.get(info.type), info.value_size
        if known and known.per_cpu:
            size = (size + 7) // 8 * 8 * kernel.possible_cpus()
        return {key: kernel.map_lookup(fd, key, size) for key in kernel.map_keys(fd, info.key_size)}


def refused(outcome: Outcome) -> str:
    """Everything a reload that failed says."""
    assert outcome.result is ReloadResult.FAILED, outcome
    return "\n".join([*outcome.refusals, *(failure.message for failure in outcome.failures)])


def check_still_served(world: World, *, programs: int = 1) -> None:
    """Every packet of this process's cgroup is counted, once by each program."""
    before = world.events()
    send_datagrams(2)
    assert world.events()[0] == before[0] + 2 * programs


def garbage(path: Path) -> None:
    """Puts something that is no object in the place of an object."""
    path.write_bytes(b"not an object at all")


@pytest.fixture
def world(bpffs: Path, cgroup: Path, places: Path, build_object: BuildObject) -> World:
    return World(places, bpffs, cgroup, build_object)
