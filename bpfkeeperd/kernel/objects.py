"""Object files through libbpf: opened, described, given kept maps, loaded.

libbpf is the reader as well as the loader: what it opens is what it loads, so description and
loading cannot disagree, and a reload opens each file once.
"""

import contextlib
import os
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.elf import check_header, first_complaint, slotted_maps
from bpfkeeperd.errors import ObjectError, errno_text
from bpfkeeperd.hooks import hook_of_section, place_of_section
from bpfkeeperd.kernel.bpf import taken
from bpfkeeperd.kernel.features import learn_features
from bpfkeeperd.kernel.places import machine
from bpfkeeperd.legacy import rewrite
from bpfkeeperd.maprefusal import likely
from bpfkeeperd.maptypes import PROG_ARRAY
from bpfkeeperd.progtypes import ProgramKind
from bpfkeeperd.state import MapSpec, ObjectSpec, ProgramSpec
from bpfkeeperd.structops import with_known_section
from bpfkeeperd.verifier import btf_left_out, load_failure, refused_map

BPF_F_SLEEPABLE = 1 << 4
"""A flag of BPF_PROG_LOAD."""


class OpenObject:
    """One object file opened by libbpf; a context manager that closes it.

    Closing also closes the descriptors of programs and maps; what is pinned or attached stays.
    """

    __slots__ = ("_data", "_maps", "_object", "_programs", "_typed", "name", "spec")

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        check_header(data)
        rewritten = rewrite(with_known_section(data))
        self._data = data = rewritten.data  # libbpf keeps pointing into it
        options = ffi.new("struct bpf_object_open_opts *")
        options.sz = ffi.sizeof("struct bpf_object_open_opts")
        # libbpf puts it before ".bss" and the like, where the section's name is looked for.
        object_name = ffi.new("char[]", name.replace(".", "_").encode())
        options.object_name = object_name
        lib.keeper_log_clear()
        self._object = lib.bpf_object__open_mem(data, len(data), options)
        if self._object == ffi.NULL:
            number, log = ffi.errno, _log()
            why = first_complaint(log) or errno_text(number)
            if why.startswith("BTF is required"):
                why = f"{why.rstrip('.')}: compile with clang -g"
            raise ObjectError(f"cannot read the object: {why}", log)
        self._maps: dict[str, Any] = {}
        self._programs: dict[str, Any] = {}
        self._typed: set[str] = set()
        self.spec = self._describe(rewritten.pins)

    def _describe(self, pins: Mapping[str, str]) -> ObjectSpec:
        map_spec = ffi.new("struct keeper_map_spec *")
        maps, pointer = [], lib.bpf_object__next_map(self._object, ffi.NULL)
        while pointer != ffi.NULL:
            spec = _map_spec(self._object, pointer, map_spec)
            if spec.name in pins:
                spec = replace(spec, pinned=True, pin_name=pins[spec.name])
            self._maps[spec.name] = pointer
            maps.append(spec)
            pointer = lib.bpf_object__next_map(self._object, pointer)
        if any(spec.type == PROG_ARRAY for spec in maps):
            slotted = slotted_maps(self._data)
            maps = [replace(spec, slotted=spec.name in slotted) for spec in maps]
        program_spec = ffi.new("struct keeper_program_spec *")
        programs, pointer = [], lib.bpf_object__next_program(self._object, ffi.NULL)
        while pointer != ffi.NULL:
            program = _program_spec(pointer, program_spec)
            self._programs[program.name] = pointer
            programs.append(program)
            pointer = lib.bpf_object__next_program(self._object, pointer)
        return ObjectSpec(tuple(maps), tuple(programs), pins)

    def reuse_map(self, name: str, fd: int) -> None:
        """Has the programs use this map instead of a new one. Nothing is compared: compare first.

        The descriptor stays the caller's.
        """
        result = lib.bpf_map__reuse_fd(self._maps[name], fd)
        if result < 0:
            raise ObjectError(f"cannot use the kept map {name}: {errno_text(-result)}", _log())

    def set_map_flags(self, name: str, flags: int) -> None:
        """Says with which flags a map is made; before `load`."""
        lib.bpf_map__set_map_flags(self._maps[name], flags)

    def fill_struct_ops(self, name: str) -> None:
        """Writes the loaded programs into a struct_ops map, which can be registered then."""
        result = lib.keeper_struct_ops_fill(self._maps[name])
        if result < 0:
            raise ObjectError(f"cannot fill struct_ops {name}: {errno_text(-result)}", _log())

    def set_type(self, program: str, kind: ProgramKind) -> None:
        """Says what a program is, whatever its section's name says; before `load`."""
        self._typed.add(program)
        pointer = self._programs[program]
        lib.bpf_program__set_type(pointer, kind.type)
        lib.bpf_program__set_expected_attach_type(pointer, kind.expected_attach_type)
        if kind.sleepable:
            _set_sleepable(pointer)

    def set_function(self, program: str, function: str) -> None:
        """Says which of the kernel's functions or tracepoints a program is loaded for; before
        `load`."""
        result = lib.bpf_program__set_attach_target(self._programs[program], 0, function.encode())
        if result < 0:
            raise ObjectError(
                f"cannot load program {program} for {function}: {errno_text(-result)}", _log()
            )

    def set_autoload(self, program: str, load: bool) -> None:
        lib.bpf_program__set_autoload(self._programs[program], load)

    def load(self) -> None:
        """Creates the missing maps and loads the programs: the verifier speaks now.

        Raises:
            ObjectError: with the program and the telling line of the verifier's log.
        """
        learn_features()
        self._set_types()
        lib.keeper_log_clear()
        result = lib.bpf_object__load(self._object)
        if result < 0 or btf_left_out(_log()):
            raise _load_error(self.spec, result, _log())

    def _set_types(self) -> None:
        for spec in self.spec.programs:
            if spec.hook is None or spec.name in self._typed:
                continue
            pointer = self._programs[spec.name]
            if not spec.type:  # a section name that this libbpf does not know
                lib.bpf_program__set_type(pointer, spec.hook.prog_type)
            if spec.expected_attach_type != spec.hook.expected_attach_type:
                lib.bpf_program__set_expected_attach_type(pointer, spec.hook.expected_attach_type)
            if spec.hook.sleepable:
                _set_sleepable(pointer)

    def program_fd(self, name: str) -> int:
        """A loaded program's descriptor; it stays the object's."""
        fd: int = lib.bpf_program__fd(self._programs[name])
        return fd

    def map_fd(self, name: str) -> int:
        """A created or reused map's descriptor; it stays the object's."""
        fd: int = lib.bpf_map__fd(self._maps[name])
        return fd

    def close(self) -> None:
        """Closes the object; a second call does nothing."""
        if self._object != ffi.NULL:
            lib.bpf_object__close(self._object)
            self._object = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_object(data: bytes, name: str) -> OpenObject:
    """Opens an object file's bytes without loading it; ``name`` goes into its maps' names.

    Raises:
        ObjectError: not an object that libbpf takes.
    """
    return OpenObject(data, name)


def load_objects(
    objects: Sequence[OpenObject],
) -> Generator[tuple[int, ObjectError | None], None, None]:
    """Loads objects on all CPUs; yields the place of each as it is done, and what went wrong.

    The verifier and libbpf's CO-RE take most of the time of a reload and do not need the
    interpreter: the threads run in C from first to last, and this one loads too when it has nothing
    else to do. All are done, or were never begun, when the iterator ends or is closed.
    """
    try:
        learn_features()
    except ObjectError as error:
        yield from ((place, error) for place in range(len(objects)))
        return
    count = len(objects)
    arrays = [ffi.new(f"{kind}[]", count) for kind in _LOADS_ARRAYS]
    loads = ffi.new("struct keeper_loads *", [count, 0, 0, *arrays])
    for place, item in enumerate(objects):
        item._set_types()
        loads.objects[place] = item._object
    others = min(count, len(os.sched_getaffinity(0)), 8) - 1
    threads: list[threading.Thread] = []
    try:
        with contextlib.suppress(RuntimeError):  # no more threads to be had: this one loads
            for _ in range(others):
                # The arrays go along: C writes to them for as long as the thread runs.
                thread = threading.Thread(target=_load_rest, args=(loads, count, arrays))
                thread.start()
                threads.append(thread)
        for seen in range(count):
            if seen == loads.nr_finished:
                lib.keeper_load_some(loads, 1)
            lib.keeper_load_wait(loads, seen)
            place = loads.finished[seen]
            result, log = loads.results[place], taken(loads.logs[place]) or ""
            failed = result < 0 or btf_left_out(log)
            yield place, _load_error(objects[place].spec, result, log) if failed else None
    finally:
        loads.next = count
        for thread in threads:
            thread.join()


def _load_rest(loads: Any, count: int, arrays: Sequence[Any]) -> None:
    lib.keeper_load_some(loads, count)


_LOADS_ARRAYS = ("struct bpf_object *", "int32_t", "char *", "uint32_t")


def _load_error(spec: ObjectSpec, result: int, log: str) -> ObjectError:
    if result >= 0:
        return ObjectError(btf_left_out(log), log)
    refused = refused_map(log)
    if refused:
        name, number = refused
        for found in spec.maps:
            if name == found.name:
                why = likely(found, number, machine())
                text = f"cannot create map {name}: {errno_text(number)}: {why}"
                return ObjectError(text, log)
    return ObjectError(load_failure(log, errno_text(-result)), log)


def _set_sleepable(pointer: Any) -> None:
    flags = lib.bpf_program__flags(pointer)
    lib.bpf_program__set_flags(pointer, flags | BPF_F_SLEEPABLE)


def _log() -> str:
    return bytes(ffi.string(lib.keeper_log())).decode("utf-8", "replace")


def _text(pointer: Any) -> str:
    return bytes(ffi.string(pointer)).decode("utf-8", "surrogateescape")


def _map_spec(open_object: Any, pointer: Any, spec: Any) -> MapSpec:
    lib.keeper_map_spec(open_object, pointer, spec)
    key_layout, value_layout = taken(spec.key_layout), taken(spec.value_layout)
    name = _text(spec.name)
    return MapSpec(
        name=name[name.find(".") :] if spec.internal else name,
        type=spec.type,
        key_size=spec.key_size,
        value_size=spec.value_size,
        max_entries=spec.max_entries,
        flags=spec.flags,
        map_extra=spec.map_extra,
        numa_node=spec.numa_node,
        pinned=spec.pinned,
        internal=spec.internal,
        key_layout=key_layout,
        value_layout=value_layout,
        inner=_inner_spec(open_object, pointer),
    )


def _inner_spec(open_object: Any, pointer: Any) -> MapSpec | None:
    inner = lib.bpf_map__inner_map(pointer)
    if inner == ffi.NULL:
        return None
    return _map_spec(open_object, inner, ffi.new("struct keeper_map_spec *"))


def _program_spec(pointer: Any, spec: Any) -> ProgramSpec:
    lib.keeper_program_spec(pointer, spec)
    section = _text(spec.section)
    return ProgramSpec(
        name=_text(spec.name),
        section=section,
        type=spec.type,
        expected_attach_type=spec.expected_attach_type,
        autoload=spec.autoload,
        hook=hook_of_section(section),
        place=place_of_section(section),
    )
