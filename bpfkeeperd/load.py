"""The first half of a reload: objects are opened, given their kept maps, and judged by the
verifier. Nothing that runs is touched."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.actions import Change, LoadObject
from bpfkeeperd.create import create_map
from bpfkeeperd.errors import KeeperError, KernelError, ObjectError
from bpfkeeperd.mapflags import LINK
from bpfkeeperd.maprefusal import likely
from bpfkeeperd.maptypes import STRUCT_OPS
from bpfkeeperd.steps import OnStep, Step

OpenObject = Callable[[str], kernel.OpenObject]
"""An object's name to the opened object, which becomes the caller's."""
KeptMap = Callable[[str], int]
"""A pin name to the descriptor of the kept map, which stays the callee's."""


@dataclass(slots=True)
class Loaded:
    """The loaded objects and new maps of one change; a context manager that closes them."""

    change: Change
    objects: dict[str, kernel.OpenObject] = field(default_factory=dict)
    new_maps: dict[str, int] = field(default_factory=dict)
    """Pin name to descriptor."""
    error: KeeperError | None = None
    _descriptors: list[int] = field(default_factory=list)
    """Of the new maps that no object closes."""

    def create_maps(self, on_step: OnStep) -> None:
        """Makes the maps of the manifest's own; libbpf makes the others as it loads."""
        for action in self.change.makes:
            if action.map.definition:
                on_step(Step.CREATE_MAP, action.map.name)
                wanted = action.map
                try:
                    fd = create_map(wanted.name, wanted.spec, wanted.definition)
                except KernelError as error:
                    if not error.action.startswith("create map"):
                        raise KernelError(
                            f"create map {wanted.name}: cannot {error.action}", error.errno
                        ) from None
                    why = likely(wanted.spec, error.errno, kernel.machine())
                    raise KernelError(f"create map {wanted.name}", error.errno, why) from None
                self._descriptors.append(fd)
                self.new_maps[action.map.name] = fd

    def open(
        self, action: LoadObject, open_object: OpenObject, kept_map: KeptMap, on_step: OnStep
    ) -> kernel.OpenObject:
        """Opens an object and gives it its maps; it is ready to be loaded."""
        wanted = action.object
        on_step(Step.LOAD_OBJECT, wanted.name)
        try:
            loading = open_object(wanted.name)
            self.objects[wanted.name] = loading
            to_be_made = self._to_be_made()
            for elf_name, pin_name in wanted.maps.items():
                fd = self.new_maps.get(pin_name)
                if fd is None and pin_name not in to_be_made:
                    fd = kept_map(pin_name)
                if fd is not None:
                    loading.reuse_map(elf_name, fd)
            for spec in wanted.source.spec.maps:
                if spec.type == STRUCT_OPS and spec.flags & LINK:
                    loading.set_map_flags(spec.name, spec.flags)
        except ObjectError as error:
            raise _named(action, error) from None
        for program in loading.spec.programs:
            if not program.autoload and program.name in wanted.programs:
                loading.set_autoload(program.name, True)
            if program.name in wanted.types:
                loading.set_type(program.name, wanted.types[program.name])
            if program.name in wanted.functions:  # what stands for it in BTF depends on the type
                loading.set_function(program.name, wanted.functions[program.name])
        return loading

    def loaded(self, action: LoadObject, failed: ObjectError | None) -> None:
        """Takes note of an object that was loaded: its new maps, or what went wrong."""
        if failed:
            self.error = _named(action, failed)
            return
        to_be_made = self._to_be_made()
        for elf_name, pin_name in action.object.maps.items():
            if pin_name in to_be_made and pin_name not in self.new_maps:
                self.new_maps[pin_name] = self.objects[action.object.name].map_fd(elf_name)

    def load_in_turn(self, open_object: OpenObject, kept_map: KeptMap, on_step: OnStep) -> None:
        """Loads the change's objects one after the other, each with the maps of those before."""
        for action in self.change.loads:
            loading = self.open(action, open_object, kept_map, on_step)
            try:
                loading.load()
            except ObjectError as error:
                raise _named(action, error) from None
            self.loaded(action, None)

    def _to_be_made(self) -> set[str]:
        return {action.map.name for action in self.change.makes}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for loaded in self.objects.values():
            loaded.close()
        for fd in self._descriptors:
            os.close(fd)


def _named(action: LoadObject, error: ObjectError) -> ObjectError:
    return ObjectError(f"object {action.object.name}: {error}", error.detail)


def load_each(
    changes: list[Loaded], open_object: OpenObject, kept_map: KeptMap, on_step: OnStep
) -> Generator[Loaded, None, None]:
    """Loads every change, and yields each as soon as it is judged, in any order.

    A failure is in the change's ``error``. Objects of one change are loaded one after the other,
    the later ones with the maps that the earlier ones made; changes of one object all at once.
    """
    single: list[tuple[Loaded, kernel.OpenObject]] = []
    for item in changes:
        loads = item.change.loads
        try:
            item.create_maps(on_step)
            if len(loads) == 1:
                single.append((item, item.open(loads[0], open_object, kept_map, on_step)))
                continue
            item.load_in_turn(open_object, kept_map, on_step)
        except KeeperError as error:
            item.error = error
        yield item
    with closing(kernel.load_objects([loading for _, loading in single])) as results:
        for place, failed in results:
            item = single[place][0]
            item.loaded(item.change.loads[0], failed)
            yield item
