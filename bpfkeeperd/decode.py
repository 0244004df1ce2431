"""A tree of YAML nodes against the table of fields: values with their places, and every problem.

What a value looks like is settled here, what values mean together is settled in manifest.py.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard, assert_never

from bpfkeeperd.errors import Mark
from bpfkeeperd.fieldkinds import (
    Boolean,
    Either,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Raw,
    Struct,
    Text,
    Word,
)
from bpfkeeperd.nodes import (
    BrokenNode,
    Faults,
    ListNode,
    MappingNode,
    Node,
    Place,
    ScalarNode,
    form,
)
from bpfkeeperd.values import Fault, boolean, integer, shown


@dataclass(frozen=True, slots=True)
class Value:
    """A decoded value and where it stands: by its key, or as an item of a list."""

    mark: Mark
    data: "Data"


@dataclass(frozen=True, slots=True)
class Member:
    """What stands under a name in a mapping."""

    mark: Mark
    """Of the name."""
    value: Value


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of a struct, defaults filled in."""

    fields: Mapping[str, Value]
    faulty: bool = False
    """A field that was written is not among them, since it has a fault."""

    def text(self, name: str) -> str | None:
        data = self._data(name)
        return data if isinstance(data, str) else None

    def number(self, name: str) -> int | None:
        data = self._data(name)
        return data if isinstance(data, int) else None

    def items(self, name: str) -> tuple[Value, ...]:
        data = self._data(name)
        return data if isinstance(data, tuple) else ()

    def members(self, name: str) -> Mapping[str, Member]:
        data = self._data(name)
        return data if isinstance(data, dict) else {}

    def record(self, name: str) -> "Record":
        data = self._data(name)
        return data if isinstance(data, Record) else Record({})

    def node(self, name: str) -> Node | None:
        data = self._data(name)
        return data if isinstance(data, Node) else None

    def _data(self, name: str) -> "Data | None":
        value = self.fields.get(name)
        return value.data if value else None


Data = str | int | tuple[Value, ...] | dict[str, Member] | Record | Node


Pairs = Sequence[tuple[ScalarNode, Node]]
ScalarKind = Text | Integer | Boolean | Word


def decode(kind: Kind, node: Node, place: Place, faults: Faults) -> Value | None:
    """The value of a node; None when it has none, which then is in ``faults``.

    A list or mapping of which nothing is written, not even brackets, is an empty one.
    """
    if isinstance(node, BrokenNode):
        return None
    if isinstance(kind, Either):
        kind = _chosen(kind, node)
    if isinstance(kind, Either) or not _has_form(kind, node):
        faults.add(node.mark, f"{place} must be {_noun(kind)}, not {form(node)}", _write(kind))
        return None
    match kind:
        case ListOf():
            items = node.items if isinstance(node, ListNode) else ()
            return Value(node.mark, _list(kind, items, place, faults))
        case MapOf():
            pairs = node.pairs if isinstance(node, MappingNode) else ()
            return Value(node.mark, _map(kind, pairs, place, faults))
        case Struct():
            pairs = node.pairs if isinstance(node, MappingNode) else ()
            return Value(node.mark, _struct(kind, pairs, place, faults))
        case Text() | Integer() | Boolean() | Word():
            return _scalar(kind, node, place, faults) if isinstance(node, ScalarNode) else None
        case Raw():
            return Value(node.mark, node)
        case _:
            assert_never(kind)


def _chosen(kind: Either, node: Node) -> Kind:
    """The kind of several that a node is meant for; all of them where that is not to be told."""
    for one in kind.kinds:
        if isinstance(one, Integer) and isinstance(node, ScalarNode) and node.text[:1].isalpha():
            continue  # a word where a number or a list of words can stand: brackets are missing
        if _has_form(one, node):
            return one
    return kind


def _has_form(kind: Kind, node: Node) -> bool:
    """Whether a node is of the form (scalar, list, mapping) that a kind has."""
    null = isinstance(node, ScalarNode) and node.is_null
    match kind:
        case ListOf():
            return null or isinstance(node, ListNode)
        case MapOf() | Struct():
            return null or isinstance(node, MappingNode)
        case Text() | Integer() | Boolean() | Word():
            return isinstance(node, ScalarNode)
        case Either():
            return any(_has_form(one, node) for one in kind.kinds)
        case Raw():
            return True
        case _:
            assert_never(kind)


def _noun(kind: Kind) -> str:
    match kind:
        case ListOf():
            return "a list"
        case MapOf() | Struct():
            return "a mapping"
        case Word(choices=(one,)):
            return one
        case Text() | Word():
            return "text"
        case Integer():
            return "an integer"
        case Boolean():
            return "true or false"
        case Either():
            return " or ".join(_noun(one) for one in kind.kinds)
        case Raw():
            return "anything"
        case _:
            assert_never(kind)


def _write(kind: Kind) -> str:
    match kind:
        case Word():
            return _one_of(kind.choices)
        case Either(kinds=kinds):
            examples = [example for example in map(_example, kinds) if example]
        case _:
            examples = [_example(kind)]
    return f"write {' or '.join(examples)}" if any(examples) else ""


def _example(kind: Kind) -> str:
    match kind:
        case ListOf(example=example) | MapOf(example=example) | Struct(example=example):
            return example
        case _:
            return ""


def _list(kind: ListOf, nodes: Sequence[Node], place: Place, faults: Faults) -> tuple[Value, ...]:
    values = (
        decode(kind.item, node, place.item(index, node.mark), faults)
        for index, node in enumerate(nodes)
    )
    return tuple(value for value in values if value is not None)


def _map(kind: MapOf, pairs: Pairs, place: Place, faults: Faults) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for key, node in _unique(pairs, place, faults):
        name = kind.key.check(key.text)
        value = decode(kind.value, node, place.under(key.text, key.mark), faults)
        if isinstance(name, Fault):
            faults.add(key.mark, f"a name in {place} {name.message}", name.remedy)
        elif value is not None:
            members[name] = Member(key.mark, value)
    return members


def _unique(pairs: Pairs, place: Place, faults: Faults) -> Iterator[tuple[ScalarNode, Node]]:
    """The pairs of a mapping; a key that was there already is reported and left out."""
    first: dict[str, Mark] = {}
    for key, node in pairs:
        mark = first.setdefault(key.text, key.mark)
        if mark is key.mark:
            yield key, node
        else:
            message = f"{place} has {shown(key.text)} twice"
            faults.add(key.mark, message, f"the first is at {mark}, remove one of them")


def _struct(kind: Struct, pairs: Pairs, place: Place, faults: Faults) -> Record:
    by_name = {field.name: field for field in kind.fields}
    fields: dict[str, Value] = {}
    given: dict[str, Mark] = {}
    for key, node in _unique(pairs, place, faults):
        field = by_name.get(key.text)
        if field is None:
            remedy = kind.elsewhere.get(key.text) or _did_you_mean(key.text, tuple(by_name))
            faults.add(key.mark, f"{place} has no field {shown(key.text)}", remedy)
            # The field that was meant is not missing on top of that.
            given.setdefault(_nearest(key.text, tuple(by_name)), key.mark)
            continue
        given[field.name] = key.mark
        value = decode(field.kind, node, place.under(field.name, key.mark), faults)
        if value is not None:
            fields[field.name] = Value(key.mark, value.data)
    _check_presence(kind, given, place, faults)
    faulty = given.keys() - fields.keys()
    for field in kind.fields:
        if field.name not in given and field.default is not None:
            fields[field.name] = Value(place.mark, field.default)
        elif field.name not in given and _can_be_empty(field.kind):
            nested = _struct(field.kind, (), place.under(field.name, place.mark), faults)
            fields[field.name] = Value(place.mark, nested)
    return Record(fields, bool(faulty))


def _can_be_empty(kind: Kind) -> TypeGuard[Struct]:
    """Whether there is a struct with its defaults where nothing is written."""
    return isinstance(kind, Struct) and not any(field.required for field in kind.fields)


def _check_presence(kind: Struct, given: Mapping[str, Mark], place: Place, faults: Faults) -> None:
    """Reports the fields that are missing, on their own account or on another field's."""
    for field in kind.fields:
        if field.required and field.name not in given:
            remedy = _write(kind) if place.label else f"begin the file with {kind.example}"
            faults.add(place.mark, f"{place} has no {field.name}", remedy)
    chosen = [name for name in kind.one_of if name in given]
    chosen = chosen or [name for name in kind.alone if name in given]
    if kind.one_of and not chosen:
        message = f"{place} has none of {', '.join(kind.one_of)}"
        faults.add(place.mark, message, _write(kind))
    for name in chosen[1:]:
        message = f"{place} has both {chosen[0]} and {name}"
        faults.add(given[name], message, "keep one, and write the other as an item of its own")
    known = set(given) if chosen else {*given, *kind.one_of}
    for field in kind.fields:
        missing = [name for name in field.needs if name not in known]
        stands_alone = field.name in chosen and field.name in kind.alone
        lonely = bool(field.beside) and not known.intersection(field.beside)
        if field.name in given and lonely and not stands_alone:
            message = f"{place} has {field.name}, which belongs to {' or '.join(field.beside)}"
            faults.add(given[field.name], message, f"remove {field.name}")
        if field.name in given and missing:
            known.update(missing)
            message = f"{place} has {field.name} but no {' and no '.join(missing)}"
            remedy = f"add {' and '.join(missing)}, or remove {field.name}"
            faults.add(given[field.name], message, remedy)


def _scalar(kind: ScalarKind, node: ScalarNode, place: Place, faults: Faults) -> Value | None:
    data = _scalar_data(kind, node)
    if isinstance(data, Fault):
        faults.add(node.mark, f"{place} {data.message}", data.remedy)
        return None
    return Value(node.mark, data)


def _scalar_data(kind: ScalarKind, node: ScalarNode) -> str | int | Fault:
    if node.is_null:
        return Fault("has no value", "write one, or leave it out if it is optional")
    match kind:
        case Text():
            return kind.check(node.text)
        case Integer():
            return integer(node.text, node.plain, kind.low, kind.high)
        case Boolean():
            return boolean(node.text, node.plain)
        case Word():
            return _word(kind, node.text)
        case _:
            assert_never(kind)


def _word(kind: Word, text: str) -> str | Fault:
    if text in kind.choices:
        return text
    if text in kind.refused:
        return kind.refused[text]
    return Fault(f"cannot be {shown(text)}", kind.write or _did_you_mean(text, kind.choices))


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    """The nearest of the known words; all of them where none is near."""
    near = _nearest(word, known)
    return f"did you mean {near}?" if near else _one_of(known)


def _nearest(word: str, known: Sequence[str]) -> str:
    """The one that was probably meant; empty where none is near."""
    word = word.lower().removeprefix("bpf_map_type_").removeprefix("bpf_f_")
    # The comparison takes quadratic time, and what is that long is no slip of the hand.
    near = difflib.get_close_matches(word, known, n=1) if len(word) <= 40 else []
    return near[0] if near else ""


def _one_of(words: Sequence[str]) -> str:
    *others, last = words
    return f"write {', '.join(others)} or {last}" if others else f"write {last}"
