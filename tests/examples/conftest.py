"""The manifests of config/examples, each run as it is shipped, in places of the test's own."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfkeeperd import kernel
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.layout import OWN_DIRECTORY
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.state import Outcome, ReloadResult
from tests.conftest import BuildObject
from tests.scenario import World

MANIFESTS = Path(__file__).parents[2] / "config" / "examples"


@dataclass(slots=True)
class Example:
    """One manifest of config/examples, with its objects where it expects them: a copy of both."""

    name: str
    world: World

    @property
    def objects(self) -> Path:
        return self.world.directory.parents[1] / "bpfkeeperd" / "bpf"

    def install(self, substitutions: Mapping[str, str]) -> None:
        """Puts the manifest and every object that it names in place."""
        text = (MANIFESTS / f"{self.name}.yaml").read_text()
        text, replaced = re.subn(r"(?m)^pin_root: .*$", f"pin_root: {self.world.pins}", text)
        assert replaced == 1, "an example says where it pins"
        self.world.manifest_file.write_text(text)
        for old, new in substitutions.items():
            self.edit(old, new)
        for source in set(re.findall(r"file: \.\./\.\./bpfkeeperd/bpf/(\w+)\.bpf\.o$", text, re.M)):
            self.put(source)

    def edit(self, old: str, new: str) -> None:
        """Changes the manifest wherever ``old`` stands in it; it must stand there."""
        text = self.world.manifest_file.read_text()
        assert old in text, f"{self.name}.yaml does not say {old!r}"
        self.world.manifest_file.write_text(text.replace(old, new))

    def put(self, source: str, **macros: object) -> None:
        """Compiles bpf/SOURCE.bpf.c with macros in place of what is there, as a whole."""
        path = self.objects / f"{source}.bpf.o"
        shutil.copy(self.world.build(source, **macros), f"{path}.new")
        os.replace(f"{path}.new", path)

    @contextmanager
    def keeper(self) -> Iterator[Keeper]:
        """A keeper of the manifest that has applied it."""
        with self.world.keeper() as keeper:
            self.reload(keeper)
            yield keeper

    def reload(self, keeper: Keeper, *, force: bool = False) -> Outcome:
        """A reload that must go well."""
        outcome = self.world.reload(keeper, force=force)
        assert outcome.result is ReloadResult.OK, outcome
        return outcome

    def map_path(self, name: str) -> Path:
        return self.world.pins / name

    def map_ids(self) -> dict[str, int]:
        """IDs of all kept maps, by name."""
        ids = {}
        for directory, inside, names in os.walk(self.world.pins):
            if directory == str(self.world.pins):
                inside.remove(OWN_DIRECTORY)
            for name in names:
                path = Path(directory, name)
                found = kernel.pinned_map(str(path)) if not name.endswith(".debug") else None
                if found:
                    os.close(found[0])
                    ids[str(path.relative_to(self.world.pins))] = found[1].id
        return ids

    def contents(self, name: str) -> dict[bytes, bytes]:
        """All keys and values of a kept map; of a per-CPU map the values of all CPUs, in a row."""
        found = kernel.pinned_map(str(self.map_path(name)))
        assert found, f"nothing is pinned as {name}"
        fd, info = found
        size = info.value_size
        if BY_NUMBER[info.type].per_cpu:
            size = (size + 7) // 8 * 8 * kernel.possible_cpus()
        with kernel.holding(fd):
            values = {
                key: kernel.map_lookup(fd, key, size) for key in kernel.map_keys(fd, info.key_size)
            }
        return {key: value for key, value in values.items() if value is not None}

    def pinned_program(self, object_name: str, program: str) -> Path:
        """Where the keeper pinned a program, for whoever attaches it himself."""
        (path,) = Path(self.world.layout.objects, object_name).glob(f"*/{program}")
        return path


MakeExample = Callable[..., Example]


@pytest.fixture
def example(bpffs: Path, cgroup: Path, places: Path, build_object: BuildObject) -> MakeExample:
    """``example(NAME, {old: new})``: config/examples/NAME.yaml with pieces of text replaced.

    What may be replaced are names of interfaces, namespaces and cgroups; the pin root is replaced
    by itself.
    """
    directory = places / "config" / "examples"

    def make(name: str, substitutions: Mapping[str, str] | None = None) -> Example:
        (directory / "state").mkdir(parents=True)
        made = Example(name, World(directory, bpffs, cgroup, build_object))
        made.objects.mkdir(parents=True)
        made.install(substitutions or {})
        return made

    return make
