"""Creating maps of the manifest's own: with BTF, and with the pattern of inner maps."""

import errno

from bpfkeeperd import kernel
from bpfkeeperd.entries import MapDefinition
from bpfkeeperd.errors import ENOTSUPP, KernelError
from bpfkeeperd.mapcolumns import Btf, KeyBtf
from bpfkeeperd.maptypes import BY_NUMBER
from bpfkeeperd.shapes import Array, Shape, btf, named, plain, struct
from bpfkeeperd.state import MapSpec

_BTF_REFUSED = frozenset({ENOTSUPP, errno.EINVAL})
"""What the kernel answers to BTF that a type does not take."""


def create_map(name: str, spec: MapSpec, definition: MapDefinition | None = None) -> int:
    """Creates a map without contents; returns its descriptor.

    ``definition`` says of what key and value are made; without it, or where it does not say, BTF
    is given only to those types that take no map without it.

    Raises:
        KernelError: the kernel refuses.
    """
    if spec.inner:
        inner = definition.inner if definition else None
        with kernel.holding(create_map(f"{name}.inner", spec.inner, inner)) as pattern:
            return _create(name, spec, inner_fd=pattern)
    shapes = _shapes(spec, definition)
    if shapes is None:
        return _create(name, spec)
    data, key_id, value_id = btf(*shapes)
    try:
        with kernel.holding(kernel.btf_load(data)) as btf_fd:
            return _create(name, spec, btf_ids=(btf_fd, key_id, value_id))
    except KernelError as error:
        if _needs_btf(spec) or error.errno not in _BTF_REFUSED:
            raise
    # The type takes no BTF, or not of this key; what else is wrong is wrong again.
    return _create(name, spec)


def _shapes(
    spec: MapSpec, definition: MapDefinition | None
) -> tuple[Shape | None, Shape | None] | None:
    """Key and value as BTF is to describe them; None where a map does without BTF."""
    key = definition.key if definition else None
    value = definition.value if definition else None
    if _needs_btf(spec):
        return named("s32"), value or Array(named("u8"), spec.value_size)
    if key is None and value is None:
        return None
    return key or _plain_key(spec), value or _plain(spec.value_size)


def _needs_btf(spec: MapSpec) -> bool:
    known = BY_NUMBER.get(spec.type)
    return known is not None and known.btf is Btf.REQUIRED


def _plain_key(spec: MapSpec) -> Shape | None:
    known = BY_NUMBER.get(spec.type)
    if known and known.key_btf is KeyBtf.STRUCT:  # an LPM_TRIE: named as in bpf_lpm_trie_key
        data = Array(named("u8"), spec.key_size - 4)
        return struct((("prefixlen", named("u32")), ("data", data)))
    return _plain(spec.key_size)


def _plain(size: int) -> Shape | None:
    return plain(size) if size else None


def _create(
    name: str, spec: MapSpec, *, inner_fd: int = 0, btf_ids: tuple[int, int, int] = (0, 0, 0)
) -> int:
    return kernel.map_create(
        spec.type,
        name.rpartition("/")[2],
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        flags=spec.flags,
        map_extra=spec.map_extra,
        numa_node=spec.numa_node,
        inner_fd=inner_fd,
        btf=btf_ids,
    )
