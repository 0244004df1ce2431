"""The first half of a reload: objects are opened, given their kept maps, and judged by the
verifier. Nothing that runs is touched."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.actions import Change, LoadObject
from bpfkeeperd.desired import WantedMap
from bpfkeeperd.errors import KeeperError, KernelError, ObjectError
from bpfkeeperd.steps import OnStep, Step

OpenObjects = dict[str, kernel.OpenObject]
KeptMap = Callable[[str], int]
"""A pin name to the descriptor of the kept map, which stays the callee's."""


@dataclass(slots=True)
class Loaded:
    """The loaded objects and new maps of one change; a context manager that closes them."""

    change: Change
    objects: OpenObjects = field(default_factory=dict)
    new_maps: dict[str, int] = field(default_factory=dict)
    """Pin name to descriptor."""
    error: KeeperError | None = None
    _descriptors: list[int] = field(default_factory=list)
    """Of the new maps that no object closes."""

    def load(self, opened: OpenObjects, kept_map: KeptMap, on_step: OnStep) -> None:
        """Makes the change's maps and loads its objects; a failure is kept in ``error``."""
        try:
            for action in self.change.maps:
                if action.map.definition:
                    on_step(Step.CREATE_MAP, action.map.name)
                    fd = create_map(action.map)
                    self._descriptors.append(fd)
                    self.new_maps[action.map.name] = fd
            wanted = {action.map.name for action in self.change.maps}
            for action_load in self.change.loads:
                self._load_object(action_load, wanted, opened, kept_map, on_step)
        except KeeperError as error:
            self.error = error

    def _load_object(
        self,
        action: LoadObject,
        wanted_maps: set[str],
        opened: OpenObjects,
        kept_map: KeptMap,
        on_step: OnStep,
    ) -> None:
        wanted = action.object
        on_step(Step.LOAD_OBJECT, wanted.name)
        try:
            loading = opened.pop(wanted.name, None) or kernel.open_object(
                wanted.source.data, wanted.name
            )
            self.objects[wanted.name] = loading
            for elf_name, pin_name in wanted.maps.items():
                fd = self.new_maps.get(pin_name)
                if fd is None and pin_name not in wanted_maps:
                    fd = kept_map(pin_name)
                if fd is not None:
                    loading.reuse_map(elf_name, fd)
            for program in loading.spec.programs:
                if not program.autoload and program.name in wanted.programs:
                    loading.set_autoload(program.name, True)
            loading.load()
        except ObjectError as error:
            raise ObjectError(f"object {wanted.name}: {error}", error.detail) from None
        for elf_name, pin_name in wanted.maps.items():
            if pin_name in wanted_maps and pin_name not in self.new_maps:
                self.new_maps[pin_name] = loading.map_fd(elf_name)

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


def create_map(wanted: WantedMap) -> int:
    """Creates a map of the manifest's own and writes its entries."""
    spec, definition = wanted.spec, wanted.definition
    fd = kernel.map_create(
        spec.type,
        wanted.name,
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        flags=spec.flags,
        map_extra=spec.map_extra,
        numa_node=spec.numa_node,
    )
    try:
        for key, value in definition.entries if definition else ():
            kernel.map_update(
                fd,
                key.to_bytes(spec.key_size, sys.byteorder),
                value.to_bytes(spec.value_size, sys.byteorder),
            )
    except KernelError as error:
        os.close(fd)
        raise KernelError(f"fill map {wanted.name}", error.errno, "see its entries") from None
    return fd


def load_each(
    changes: list[Loaded], opened: OpenObjects, kept_map: KeptMap, on_step: OnStep
) -> Iterator[Loaded]:
    """Loads every change, and yields each as soon as it is judged, in any order.

    All CPUs load: the verifier and libbpf's CO-RE take most of the time of a reload and do not
    need the interpreter. This thread loads too whenever nothing is ready to be yielded.
    """
    queue, ready = iter(changes), SimpleQueue[Loaded | BaseException]()

    def load_rest() -> None:
        try:
            for item in queue:  # a list's iterator may be shared: next() is one step
                item.load(opened, kept_map, on_step)
                ready.put(item)
        except BaseException as error:
            ready.put(error)

    others = min(len(changes), len(os.sched_getaffinity(0)), 8) - 1
    threads = [threading.Thread(target=load_rest, name="load") for _ in range(others)]
    for thread in threads:
        thread.start()
    try:
        for _ in changes:
            yield _next(queue, ready, opened, kept_map, on_step)
    finally:
        for thread in threads:
            thread.join()


def _next(
    queue: Iterator[Loaded],
    ready: SimpleQueue[Loaded | BaseException],
    opened: OpenObjects,
    kept_map: KeptMap,
    on_step: OnStep,
) -> Loaded:
    """What another thread has loaded, else the next one of the queue, else the next to be ready."""
    try:
        item = ready.get_nowait()
    except Empty:
        mine = next(queue, None)
        if mine:
            mine.load(opened, kept_map, on_step)
            return mine
        item = ready.get()
    if isinstance(item, BaseException):
        raise item
    return item
