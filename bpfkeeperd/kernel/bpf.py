"""The bpf(2) commands that the keeper uses, each a thin function that raises `KernelError`."""

import errno
import functools
import itertools
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import PASSING, KernelError
from bpfkeeperd.kernel.scan import PinKind
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.state import LinkInfo, MapInfo, ProgramInfo

TRACE_ITER = 28
"""BPF_TRACE_ITER of ``enum bpf_attach_type``."""

lib.keeper_init()

_KIND_NAMES: dict[int, str] = {
    PinKind.MAP: "a map",
    PinKind.PROGRAM: "a program",
    PinKind.LINK: "a link",
}


def checked(result: int, action: str, remedy: str = "") -> int:
    """What a function of the extension returned, unless it is the negative of an errno."""
    if result < 0:
        raise KernelError(action, -result, remedy)
    return result


def needs_admin(result: int) -> str:
    """What helps against the errno of a call that takes CAP_SYS_ADMIN."""
    return "it takes CAP_SYS_ADMIN" if result == -errno.EPERM else ""


@contextmanager
def holding(fd: int) -> Iterator[int]:
    """Closes a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def kind_of(fd: int) -> PinKind:
    """What a descriptor is of; OTHER for what is no map, program or link.

    Raises:
        KernelError: it cannot be told.
    """
    return PinKind(checked(lib.keeper_kind(fd), "tell what a descriptor is of"))


def pinned(path: str, kind: PinKind) -> int | None:
    """A descriptor of what is pinned at a path; None when nothing is.

    BPF_OBJ_GET returns any kind of object, and a program's info can pass for a map's, so the kind
    is checked.

    Raises:
        KernelError: the pin cannot be opened, or is of another kind (EINVAL).
    """
    fd: int = lib.bpf_obj_get(os.fsencode(path))
    if fd == -errno.ENOENT:
        return None
    checked(fd, f"open the pin {path}")
    try:
        check_kind(lib.keeper_kind(fd), kind, path)
    except KernelError:
        os.close(fd)
        raise
    return fd


def check_kind(found: int, kind: PinKind, path: str) -> None:
    """Whether what is pinned at a path is what it should be.

    Raises:
        KernelError: it is of another kind (EINVAL).
    """
    if found != kind:
        holds = _KIND_NAMES.get(found, "something else")
        raise KernelError(
            f"use the pin {path}",
            errno.EINVAL,
            f"it holds {holds}, not {_KIND_NAMES[kind]}: move it away or choose another name",
        )


def pinned_map(path: str) -> tuple[int, MapInfo] | None:
    """A pinned map's descriptor and info; None when nothing is pinned there."""
    fd = pinned(path, PinKind.MAP)
    if fd is None:
        return None
    try:
        return fd, map_info(fd)
    except BaseException:
        os.close(fd)
        raise


def pin(fd: int, path: str) -> None:
    """Pins an object; an existing pin is an error (EEXIST), never replaced."""
    checked(lib.bpf_obj_pin(fd, os.fsencode(path)), f"pin at {path}")


def rename(source: str, path: str) -> None:
    """Gives a pin another name in one step; an existing one is an error, never replaced."""
    result = lib.keeper_rename(os.fsencode(source), os.fsencode(path))
    checked(result, f"rename the pin {source} to {path}")


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map, without the layouts of its BTF (see `btf_layouts`)."""
    info = ffi.new("struct keeper_map_info *")
    checked(lib.keeper_map_info(fd, info), "read a map's info")
    return MapInfo(
        id=info.id,
        name=ffi.string(info.name).decode("utf-8", "replace"),
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.flags,
        map_extra=info.map_extra,
        btf=(info.btf_id, info.btf_key_type_id, info.btf_value_type_id),
    )


def btf_layouts(btf_id: int, key_type: int, value_type: int) -> tuple[str | None, str | None]:
    """The layouts of a map's key and value from the kernel's BTF; None for what is not known.

    Reading BTF by ID needs CAP_SYS_ADMIN; without it nothing is known.

    Raises:
        KernelError: it did not work this time.
    """
    if not btf_id:
        return None, None
    try:
        return _layouts(btf_id, key_type, value_type)
    except KernelError as error:
        if error.errno in PASSING:
            raise
        return None, None


@functools.lru_cache(maxsize=4096)
def _layouts(btf_id: int, key_type: int, value_type: int) -> tuple[str | None, str | None]:
    """IDs are never used twice before 2^31 of them were given out, so an answer stays true."""
    btf = lib.btf__load_from_kernel_by_id(btf_id)
    if btf == ffi.NULL:
        raise KernelError(f"read the BTF with ID {btf_id}", ffi.errno)
    try:
        key_layout = taken(lib.keeper_layout(btf, key_type)) if key_type else None
        value_layout = taken(lib.keeper_layout(btf, value_type)) if value_type else None
        return key_layout, value_layout
    finally:
        lib.btf__free(btf)


def taken(text: Any) -> str | None:
    """A string that C allocated, which is freed; None for NULL."""
    if text == ffi.NULL:
        return None
    try:
        return bytes(ffi.string(text)).decode("utf-8", "replace")
    finally:
        lib.free(text)


def map_has_owner(fd: int) -> bool:
    """Whether it is settled which kind of programs a map of programs takes."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return any(line.startswith("owner_prog_type:") for line in file)


def program_info(fd: int) -> ProgramInfo:
    info = ffi.new("struct keeper_prog_info *")
    checked(lib.keeper_prog_info(fd, info), "read a program's info")
    return ProgramInfo(
        info.id,
        info.type,
        tuple(info.map_ids[0 : info.nr_map_ids]),
        ffi.string(info.name).decode("utf-8", "replace"),
        bytes(info.tag).hex(),
    )


def link_info(fd: int) -> LinkInfo:
    info = ffi.new("struct keeper_link_info *")
    checked(lib.keeper_link_info(fd, info), "read a link's info")
    detail = ffi.string(info.detail).decode("utf-8", "surrogateescape")
    return LinkInfo(info.id, info.prog_id, info.type, info.target_id, info.attach_type, detail)


def prog_load(
    prog_type: int,
    name: str,
    instructions: bytes,
    expected_attach_type: int = 0,
    like_fd: int | None = None,
) -> int:
    """Loads instructions as a program; with ``like_fd`` for the function or tracepoint that this
    program was loaded for, if for any."""
    kernel_name = re.sub("[^A-Za-z0-9_.]", "_", name)[:15].encode()
    fd = lib.keeper_prog_load(
        prog_type,
        kernel_name,
        instructions,
        len(instructions) // 8,
        expected_attach_type,
        -1 if like_fd is None else like_fd,
    )
    return checked(fd, f"load program {name}")


def map_by_id(map_id: int) -> int | None:
    """A descriptor of a map by its ID; None when there is none (any more).

    Raises:
        KernelError: EPERM without CAP_SYS_ADMIN.
    """
    fd: int = lib.bpf_map_get_fd_by_id(map_id)
    if fd == -errno.ENOENT:
        return None
    return checked(fd, f"open the map with ID {map_id}", needs_admin(fd))


def map_lives(map_id: int) -> bool:
    """Whether there is a map with an ID; True where nobody may ask (without CAP_SYS_ADMIN)."""
    try:
        fd = map_by_id(map_id)
    except KernelError:
        return True
    if fd is not None:
        os.close(fd)
    return fd is not None


def program_by_id(program_id: int) -> int | None:
    """A descriptor of a program by its ID; None when there is none (any more).

    Raises:
        KernelError: EPERM without CAP_SYS_ADMIN.
    """
    fd: int = lib.bpf_prog_get_fd_by_id(program_id)
    if fd == -errno.ENOENT:
        return None
    return checked(fd, f"open the program with ID {program_id}", needs_admin(fd))


def map_create(
    map_type: int,
    name: str,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    flags: int = 0,
    map_extra: int = 0,
    numa_node: int = 0,
    inner_fd: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Creates a map. The kernel takes 15 characters of a name, of ``[A-Za-z0-9_.]``.

    ``inner_fd`` is the pattern of a map-in-map's inner maps; ``btf`` a descriptor from `btf_load`
    with the IDs of the key's and the value's type.
    """
    kernel_name = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    text = ffi.new("char[]", kernel_name[:15].encode())
    definition = ffi.new(
        "struct keeper_map_definition *",
        {
            "name": text,
            "type": map_type,
            "key_size": key_size,
            "value_size": value_size,
            "max_entries": max_entries,
            "flags": flags,
            "numa_node": numa_node,
            "inner_fd": inner_fd,
            "btf_fd": btf[0],
            "btf_key_type_id": btf[1],
            "btf_value_type_id": btf[2],
            "map_extra": map_extra,
        },
    )
    return checked(
        lib.keeper_map_create(definition),
        f"create map {name} (type {type_name(map_type)}, key_size {key_size}, value_size"
        f" {value_size}, max_entries {max_entries}, flags {flags:#x})",
    )


def btf_load(data: bytes) -> int:
    """Gives BTF to the kernel; returns its descriptor."""
    return checked(lib.bpf_btf_load(data, len(data), ffi.NULL), "load BTF into the kernel")


def btf_data(btf_id: int) -> bytes | None:
    """The raw BTF with an ID; None when there is none, or without CAP_SYS_ADMIN."""
    btf = lib.btf__load_from_kernel_by_id(btf_id)
    if btf == ffi.NULL:
        return None
    try:
        size = ffi.new("uint32_t *")
        data = lib.btf__raw_data(btf, size)
        return bytes(ffi.buffer(data, size[0])) if data != ffi.NULL else None
    finally:
        lib.btf__free(btf)


def map_update(fd: int, key: bytes | None, value: bytes, flags: int = 0) -> None:
    """Writes one entry; no key for queues, stacks and bloom filters."""
    checked(lib.bpf_map_update_elem(fd, _key(key), value, flags), "update a map entry")


def _key(key: bytes | None) -> Any:
    return ffi.NULL if key is None else key


def map_pop(fd: int, key: bytes | None, value_size: int) -> bytes | None:
    """Takes one entry out: of a queue or stack the next; None when there is none."""
    value = ffi.new("char[]", value_size)
    result = lib.bpf_map_lookup_and_delete_elem(fd, _key(key), value)
    if result == -errno.ENOENT:
        return None
    checked(result, "take a map entry")
    return bytes(ffi.buffer(value))


def map_delete(fd: int, key: bytes) -> None:
    checked(lib.bpf_map_delete_elem(fd, key), "delete a map entry")


def map_lookup(fd: int, key: bytes | None, value_size: int) -> bytes | None:
    """One value (of a queue or stack, without a key, the next); None for a key that is not there.

    Per-CPU maps give one value per possible CPU: the caller sizes the buffer."""
    value = ffi.new("char[]", value_size)
    result = lib.bpf_map_lookup_elem(fd, _key(key), value)
    if result == -errno.ENOENT:
        return None
    checked(result, "look up a map entry")
    return bytes(ffi.buffer(value))


def map_contains(fd: int, value: bytes) -> bool:
    """Whether a bloom filter may hold a value."""
    result = lib.bpf_map_lookup_elem(fd, ffi.NULL, ffi.new("char[]", value))
    return result != -errno.ENOENT and checked(result, "ask a bloom filter") == 0


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys, one system call each: for small maps and for tests."""
    key, following = ffi.NULL, ffi.new("char[]", key_size)
    while (result := lib.bpf_map_get_next_key(fd, key, following)) != -errno.ENOENT:
        checked(result, "read a map's next key")
        key = ffi.new("char[]", bytes(ffi.buffer(following)))
        yield bytes(ffi.buffer(following))


def link_create(
    prog_fd: int, target: int, attach_type: int, flags: int = 0, extra: bytes = b""
) -> int:
    """Attaches a program; the target is a descriptor, or the index of an interface.

    ``extra`` are the attributes of BPF_LINK_CREATE after ``flags``, from byte 16 on, which each
    kind of link has of its own; pointers in it must stay good during the call.
    """
    return checked(
        lib.keeper_link_create(prog_fd, target, attach_type, flags, extra, len(extra)),
        "attach a program",
    )


def raw_tracepoint_open(name: str | None, prog_fd: int) -> int:
    """Attaches a program by BPF_RAW_TRACEPOINT_OPEN; without a name at the place that it was loaded
    for (tp_btf, fentry, fexit, fmod_ret, LSM)."""
    text = ffi.NULL if name is None else ffi.new("char[]", name.encode())
    return checked(lib.bpf_raw_tracepoint_open(text, prog_fd), "attach a program")


def link_update(link_fd: int, prog_fd: int, old_prog_fd: int | None = None) -> None:
    """Swaps a link's program; with ``old_prog_fd`` only while the link runs that one (else EPERM).

    The kernel does not check that the new program's attach type fits: the caller must.
    """
    old = -1 if old_prog_fd is None else old_prog_fd
    checked(lib.keeper_link_update(link_fd, prog_fd, old), "swap the program of a link")


def link_swap_all(swaps: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Swaps the programs of links: descriptors of link, new and old program, as `link_update`.

    Returns how many were swapped, and the errno of the one after them; 0 when all were.
    """
    flat = array("i", itertools.chain.from_iterable(swaps))
    done = ffi.new("uint32_t *")
    pointer = ffi.cast("struct keeper_link_swap *", ffi.from_buffer(flat))
    result = lib.keeper_link_swap_all(pointer, len(swaps), done)
    return done[0], -result


def iter_create(link_fd: int) -> int:
    """A descriptor that reads what an iterator program writes, once."""
    return checked(lib.bpf_iter_create(link_fd), "create an iterator")


def release_memory() -> None:
    """Gives back to the system what libbpf freed after parsing the kernel's BTF."""
    lib.malloc_trim(0)
