"""Views of key and value become a program that shows entries, executed in C. Pure.

Loops are kept as loops, so that a program is as long as its types, however large the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from typing import assert_never

from bpfkeeperd.views import (
    Array,
    Bytes,
    Field,
    Integer,
    Ip,
    Null,
    Real,
    Record,
    Sense,
    Text,
    View,
    ViewError,
)

KEY_HEAD = "KEY"
CPU_WIDTH = 3


class Style(StrEnum):
    JSON = "json"
    TABLE = "table"


class Code(Enum):
    """``enum keeper_code`` of _build/dump.h, by name."""

    LITERAL = auto()
    KEY = auto()
    VALUE = auto()
    CPUS = auto()
    CPU = auto()
    EACH = auto()
    PAD = auto()
    NUMBER = auto()
    BOOL = auto()
    ENUM = auto()
    ADDRESS = auto()
    FLOAT = auto()
    STRING = auto()
    BYTES = auto()
    IPV4 = auto()
    IPV6 = auto()


@dataclass(frozen=True, slots=True)
class Op:
    """One step: ``struct keeper_op``, with its text and names in it."""

    code: Code
    offset: int = 0
    size: int = 0
    count: int = 0
    end: int = 0
    text: str = ""
    signed: bool = False
    network: bool = False
    until_zero: bool = False
    bit: int = 0
    bits: int = 0
    names: tuple[tuple[str, int], ...] = ()
    """Texts by number: of an enum."""


@dataclass(frozen=True, slots=True)
class Format:
    """How entries are shown."""

    style: Style
    ops: tuple[Op, ...]
    per_cpu: bool

    @property
    def between(self) -> str:
        return ",\n" if self.style is Style.JSON else ""


def before(form: Format, width: int) -> str:
    """What stands above all entries; of a table, whose first column is so wide, its head."""
    if form.style is Style.JSON:
        return "[\n"
    cpu = f"  {'CPU':>{CPU_WIDTH}}" if form.per_cpu else ""
    return f"{KEY_HEAD:<{width}}{cpu}  VALUE\n"


def after(form: Format, shown: int) -> str:
    """What stands below so many entries."""
    if form.style is Style.JSON:
        return "\n]\n" if shown else "]\n"
    return ""


_SENSES = {Sense.NUMBER: Code.NUMBER, Sense.BOOL: Code.BOOL, Sense.ADDRESS: Code.ADDRESS}


def quoted(text: str) -> str:
    """Text as JSON has it."""
    return f'"{plain(text)}"'


def plain(text: str) -> str:
    """Text without anything that a terminal obeys or that ends a string."""
    return "".join(
        c if " " <= c <= "~" and c not in '"\\' else f"\\u{ord(c) & 0xFFFF:04x}" for c in text
    )


@dataclass(slots=True)
class _Program:
    style: Style
    ops: list[Op] = field(default_factory=list)
    sealed: int = 0
    """Ops before this one are part of a loop that has ended."""

    def literal(self, text: str) -> None:
        last = len(self.ops) - 1
        if last >= self.sealed and self.ops[last].code is Code.LITERAL:
            self.ops[last] = replace(self.ops[last], text=self.ops[last].text + text)
        elif text:
            self.ops.append(Op(Code.LITERAL, text=text))

    def add(self, op: Op) -> None:
        self.ops.append(op)

    def begin(self, op: Op) -> int:
        """Begins a loop; what is added until `end` is its body."""
        self.ops.append(op)
        return len(self.ops) - 1

    def end(self, start: int) -> None:
        self.ops[start] = replace(self.ops[start], end=len(self.ops))
        self.sealed = len(self.ops)

    def view(self, view: View, offset: int, limit: int, *, outermost: bool = False) -> None:
        """Adds what shows a view at an offset of something that is ``limit`` bytes long."""
        match view:
            case Integer():
                self.integer(view, offset, limit)
            case Real(size):
                text = "null" if self.style is Style.JSON else ""
                self.bounded(Op(Code.FLOAT, offset, size, text=text), size, limit)
            case Text(size):
                self.bounded(Op(Code.STRING, offset, size), size, limit)
            case Bytes(size):
                self.text(Op(Code.BYTES, offset, size), size, limit)
            case Ip(size):
                code = Code.IPV4 if size == 4 else Code.IPV6
                self.text(Op(code, offset, size), size, limit)
            case Record(members):
                self.record(members, offset, limit, braces=not outermost)
            case Array():
                self.array(view, offset, limit)
            case Null():
                self.literal("null" if self.style is Style.JSON else "-")
            case _:
                assert_never(view)

    def integer(self, view: Integer, offset: int, limit: int) -> None:
        size = (view.bit + view.bits + 7) // 8 if view.bits else view.size
        op = Op(
            _SENSES[view.sense],
            offset,
            view.size,
            signed=view.signed,
            network=view.network,
            bit=view.bit,
            bits=view.bits,
        )
        if view.sense is Sense.ADDRESS:
            self.text(op, size, limit)
        elif view.names:
            show = quoted if self.style is Style.JSON else plain
            names = tuple((show(name), number) for name, number in view.names)
            self.bounded(replace(op, code=Code.ENUM, names=names), size, limit)
        elif view.network and view.size == 4 and self.style is Style.TABLE:
            self.bounded(Op(Code.IPV4, offset, view.size), size, limit)
        else:
            self.bounded(op, size, limit)

    def bounded(self, op: Op, size: int, limit: int) -> None:
        if op.offset < 0 or op.offset + size > limit:
            raise ViewError(f"a field ends at byte {op.offset + size} of {limit}")
        self.add(op)

    def text(self, op: Op, size: int, limit: int) -> None:
        """Adds what JSON wants in quotes."""
        quote = '"' if self.style is Style.JSON else ""
        self.literal(quote)
        self.bounded(op, size, limit)
        self.literal(quote)

    def record(self, members: Sequence[Field], offset: int, limit: int, *, braces: bool) -> None:
        as_json = self.style is Style.JSON
        self.literal("{" if as_json or braces else "")
        for number, member in enumerate(members):
            name = f"{quoted(member.name)}: " if as_json else f"{plain(member.name)}="
            separator = ", " if as_json else " "
            self.literal(f"{separator if number else ''}{name}")
            self.view(member.view, offset + member.offset, limit)
        self.literal("}" if as_json or braces else "")

    def array(self, view: Array, offset: int, limit: int) -> None:
        if offset + view.count * view.stride > limit or (view.until_zero and view.stride < 8):
            raise ViewError(f"an array ends behind byte {limit}")
        self.literal("[")
        each = Op(
            Code.EACH,
            offset,
            view.stride,
            view.count,
            text=", " if self.style is Style.JSON else " ",
            until_zero=view.until_zero,
        )
        start = self.begin(each)
        self.view(view.element, 0, view.stride)
        self.end(start)
        self.literal("]")


def compile_format(
    style: Style, key: View, key_size: int, value: View, value_size: int, *, per_cpu: bool
) -> Format:
    """The program for entries of these views and sizes in bytes.

    Raises:
        ViewError: a view does not fit into its size.
    """
    program = _Program(style)

    def add_key() -> None:
        program.add(Op(Code.KEY))
        program.view(key, 0, key_size, outermost=True)

    def add_value() -> None:
        program.add(Op(Code.VALUE))
        program.view(value, 0, value_size, outermost=True)

    def add_row() -> None:
        add_key()
        program.add(Op(Code.PAD))
        program.literal("  ")
        if per_cpu:
            program.add(Op(Code.CPU, size=CPU_WIDTH))
            program.literal("  ")
        add_value()
        program.literal("\n")

    if style is Style.TABLE:
        if per_cpu:
            start = program.begin(Op(Code.CPUS))
            add_row()
            program.end(start)
        else:
            add_row()
        return Format(style, tuple(program.ops), per_cpu)
    program.literal('{"key": ')
    add_key()
    if per_cpu:
        program.literal(', "values": [')
        start = program.begin(Op(Code.CPUS, text=", "))
        program.literal('{"cpu": ')
        program.add(Op(Code.CPU))
        program.literal(', "value": ')
        add_value()
        program.literal("}")
        program.end(start)
        program.literal("]}")
    else:
        program.literal(', "value": ')
        add_value()
        program.literal("}")
    return Format(style, tuple(program.ops), per_cpu)
