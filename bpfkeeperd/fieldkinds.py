"""What the fields of a manifest can be made of. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bpfkeeperd.values import Fault, any_text

U32_MAX = 2**32 - 1
S63_MAX = 2**63 - 1
U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Text:
    check: Callable[[str], "str | Fault"] = any_text
    """The normal form of a text, or what is wrong with it."""
    pattern: str = ""
    """For the schema only: what an editor can see without the check."""
    digits: bool = False
    """For the schema only: it can be digits without quotes, which an editor takes for a number."""


@dataclass(frozen=True, slots=True)
class Integer:
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Boolean:
    pass


@dataclass(frozen=True, slots=True)
class Word:
    """One of a few words."""

    choices: tuple[str, ...]
    refused: Mapping[str, Fault] = field(default_factory=dict)
    """Words that one could expect here, and what to say about each."""
    write: str = ""
    """What to write instead of a wrong one, where the words alone do not say it."""


@dataclass(frozen=True, slots=True)
class ListOf:
    item: "Kind"
    example: str = ""


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping whose keys are names of the operator's own."""

    key: Text
    value: "Kind"
    example: str = ""


@dataclass(frozen=True, slots=True)
class Struct:
    """A mapping whose keys are the names of its fields."""

    fields: tuple["Field", ...]
    example: str = ""
    one_of: tuple[str, ...] = ()
    """Exactly one of these has to be there."""
    alone: tuple[str, ...] = ()
    """Fields that can stand for one of those."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Keys that one could look for here, and where they belong."""


@dataclass(frozen=True, slots=True)
class Either:
    """Kinds that can be told apart by their form: a scalar, a list, a mapping."""

    kinds: tuple["Kind", ...]


@dataclass(frozen=True, slots=True)
class Raw:
    """Whatever can be written, kept as it is: what it means depends on what stands beside it."""

    schema: Mapping[str, object] = field(default_factory=dict)
    """For the schema only: what an editor can see all the same."""


Kind = Text | Integer | Boolean | Word | ListOf | MapOf | Struct | Either | Raw


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    kind: Kind
    doc: str
    required: bool = False
    default: str | int | None = None
    """A bool is an int."""
    needs: tuple[str, ...] = ()
    """Fields of the same struct that have to be there when this one is."""
    beside: tuple[str, ...] = ()
    """Likewise, but one of them is enough."""
