"""What the columns of the table of map types hold. Pure; sizes are in bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never


class Limit(StrEnum):
    """A bound that depends on the machine or on how its kernel was built; the text is for docs."""

    PER_CPU = "32 KiB"
    """The smallest unit of the per-CPU allocator."""
    KMALLOC = "4 MiB"
    """The largest piece of memory that the kernel gives out in one."""
    HASH_ELEMENT = "4 MiB - 49"
    """Key and value together, which are one piece."""
    TRIE_VALUE = "4 MiB - 280"
    STACK = "8 x perf_event_max_stack"
    KERNEL_CPUS = "NR_CPUS"
    ARENA_PAGES = "4 GiB of pages"
    PAGE = "page size"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few numbers; 0 alone: has to be left out."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Range:
    low: int
    high: int | Limit | None = None
    """None: as much as fits into the field."""
    answer: str = "E2BIG"
    """The kernel's, to what is larger."""


@dataclass(frozen=True, slots=True)
class Multiple:
    """A multiple of something; 0 is one if ``low`` is 0."""

    of: int | Limit
    low: int
    high: int | Limit | None = None


@dataclass(frozen=True, slots=True)
class Pages:
    """The page size times a power of two."""


Size = OneOf | Range | Multiple | Pages


@dataclass(frozen=True, slots=True)
class Part:
    """A key or a value: how large it can be, and what it is."""

    size: Size
    means: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What creation takes at once for each entry of max_entries; the parts add up."""

    fixed: int = 0
    key: bool = False
    """The key, rounded up to 8."""
    value: bool = False
    """The value, rounded up to 8 (not where there is no key); for each CPU in per-CPU maps."""
    bucket: int = 0
    """For each of max_entries rounded up to a power of two."""


class Btf(StrEnum):
    """Whether BTF of key and value can be given at creation."""

    TAKEN = "taken"
    REQUIRED = "required"
    REFUSED = "refused"
    """Creation fails with it (524, or EINVAL), and is tried again without."""


class KeyBtf(StrEnum):
    """What BTF of a key has to be, where it is given."""

    ANY = "any type"
    INT = "a 4-byte integer"
    STRUCT = "a struct"
    CGROUP = "struct bpf_cgroup_storage_key, or __u64"


class Copy(StrEnum):
    """How contents can be copied into another map."""

    BATCH = "in batches"
    KEYS = "key by key"
    NO = "not"


class Share(StrEnum):
    """Which programs can use one map together."""

    ANY = "any programs"
    ALIKE = "programs of one kind"
    """Of the same type, and for some the same attach type."""
    ONE = "one program at a time"
    NONE = "no program refers to it"


class Inner(StrEnum):
    """Whether it can be the inner map of a map-in-map, and what has to be equal then."""

    YES = "yes, max_entries may differ"
    SAME_SIZE = "yes, with equal max_entries"
    """Unless it has the flag ``inner_map``, where the type takes that."""
    NESTED = "no (EINVAL)"
    """Map-in-map goes one level deep."""
    UNSUPPORTED = "no (ENOTSUPP)"


def size_text(size: Size, noun: str, bound: Callable[[int | Limit], str] = str) -> str:
    """``1 to 512 bytes``: what a size can be, in a noun that is given as for one."""
    match size:
        case OneOf(numbers):
            last = numbers[-1]
            return f"{' or '.join(str(number) for number in numbers)}{_nouns(noun, last)}"
        case Range(low, None):
            return f"at least {low}{_nouns(noun, low)}"
        case Range(low, high):
            return f"{low} to {bound(high or 0)}{_nouns(noun, 2)}"
        case Multiple(of, _, None):
            return f"a multiple of {bound(of)}{_nouns(noun, 2)}"
        case Multiple(of, low, high):
            return f"a multiple of {bound(of)}, {low} to {bound(high or 0)}{_nouns(noun, 2)}"
        case Pages():
            return "the page size times a power of two"
        case _:
            assert_never(size)


def _nouns(noun: str, number: int) -> str:
    if not noun:
        return ""
    return f" {noun}" if number == 1 else f" {noun}s"
