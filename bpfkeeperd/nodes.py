"""What is written in a manifest, as a tree of nodes with places, and what is wrong with it. Pure.

A scalar is its text: the field it is written for decides what that means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import assert_never

from bpfkeeperd.errors import ManifestError, Mark, Problem
from bpfkeeperd.values import short, shown

PROBLEMS_MAX = 200
_NULL_WORDS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(frozen=True, slots=True)
class ScalarNode:
    text: str
    plain: bool
    """Written without quotes: only then can it be anything but text."""
    mark: Mark

    @property
    def is_null(self) -> bool:
        return self.plain and self.text in _NULL_WORDS


@dataclass(frozen=True, slots=True)
class ListNode:
    items: tuple["Node", ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class MappingNode:
    pairs: tuple[tuple[ScalarNode, "Node"], ...]
    """In the order of the file; a key may be there twice."""
    mark: Mark


@dataclass(frozen=True, slots=True)
class BrokenNode:
    """Something that has been reported already: nothing more is to be said about it."""

    mark: Mark


Node = ScalarNode | ListNode | MappingNode | BrokenNode


class Faults:
    """The problems found so far in the files of one manifest."""

    def __init__(self, files: Sequence[str]) -> None:
        self._order = {name: index for index, name in enumerate(files)}
        self._problems: list[Problem] = []

    def add(self, mark: Mark, message: str, remedy: str = "") -> None:
        """Notes one problem; gives up with a ManifestError when there are far too many."""
        self._problems.append(Problem(mark, message, remedy))
        if len(self._problems) == PROBLEMS_MAX:
            last = Problem(mark, f"{PROBLEMS_MAX} problems so far, the rest was not looked at")
            raise ManifestError((*self._sorted(), last))

    def raise_any(self) -> None:
        """Raises a ManifestError with all problems, in the order of files and lines, if any."""
        if self._problems:
            raise ManifestError(self._sorted())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """In the order of files and lines."""
        return self._sorted()

    def _sorted(self) -> tuple[Problem, ...]:
        def place(problem: Problem) -> tuple[int, int, int]:
            mark = problem.mark
            return self._order.get(mark.file, len(self._order)), mark.line, mark.column

        return tuple(sorted(self._problems, key=place))


def flow(node: Node) -> str:
    """A node on one line, as it could be written, cut where it is too long to read."""
    return short("".join(_pieces(node)))


def _pieces(node: Node) -> Iterator[str]:
    match node:
        case ScalarNode(text=text):
            yield text
        case ListNode(items=items):
            for index, item in enumerate(items):
                yield ", " if index else "["
                yield from _pieces(item)
            yield "]" if items else "[]"
        case MappingNode(pairs=pairs):
            for index, (key, value) in enumerate(pairs):
                yield f", {key.text}: " if index else f"{{{key.text}: "
                yield from _pieces(value)
            yield "}" if pairs else "{}"
        case BrokenNode():
            yield "?"
        case _:
            assert_never(node)


def form(node: Node) -> str:
    """What a message calls a node that is of the wrong form."""
    match node:
        case ListNode():
            return "a list"
        case MappingNode():
            return "a mapping"
        case ScalarNode() as scalar:
            return shown(scalar.text)
        case BrokenNode():
            return "something else"
        case _:
            assert_never(node)


@dataclass(frozen=True, slots=True)
class Place:
    """What messages call a node, and the mark of its name."""

    label: str
    mark: Mark

    def under(self, name: str, mark: Mark) -> "Place":
        """The place of a member or a field."""
        return Place(f"{self.label}.{short(name)}" if self.label else short(name), mark)

    def item(self, index: int, mark: Mark) -> "Place":
        """The place of an item of a list, counted from 0."""
        return Place(f"{self.label}[{index}]", mark)

    def __str__(self) -> str:
        return self.label or "the manifest"
