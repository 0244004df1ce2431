"""The bytes of one YAML file as a tree of nodes with places; the only user of PyYAML.

PyYAML as it comes can take a root daemon down: deep nesting overruns the stack of its C composer,
merge keys and aliases blow a few bytes up to gigabytes, ``no`` and ``0755`` become something else.
So only its stream of parse events is used, which nests nothing, and every event is looked at before
the next one is asked for. No tag is resolved here: a scalar is its text, and the field it is
written for decides what that means.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import yaml

from bpfkeeperd.errors import Mark
from bpfkeeperd.nodes import BrokenNode, Faults, ListNode, MappingNode, Node, ScalarNode
from bpfkeeperd.values import shown

SIZE_MAX_BYTES = 1 << 20
NODES_MAX = 50_000
PURE_SHARE = 4
"""Without libyaml a file may be a quarter of that: PyYAML's own parser is some 15 times slower."""
DEPTH_MAX = 20

# What libyaml and PyYAML's own parser refuse too, but without a line and a column.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
# In a scalar: control characters, line ends and lone surrogates, which escapes can smuggle in.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def read_tree(
    file: str, data: bytes, faults: Faults, *, libyaml: bool = yaml.__with_libyaml__
) -> Node | None:
    """The tree of one file; None when there is none to go on with, which is then in ``faults``.

    Takes less than a second and 100 MB, whatever the bytes are. An empty file is a null scalar.
    """
    share = 1 if libyaml else PURE_SHARE
    limit = SIZE_MAX_BYTES // share
    if len(data) > limit:
        start = Mark(file, 1, 1)
        faults.add(start, f"the file is larger than {limit >> 10} KiB", "split it into conf.d/")
        return None
    text = _decoded(file, data, faults)
    if text is None:
        return None
    page = _Page(file, text)
    if not _plain_enough(page, text, faults):
        return None
    return _Tree(page, faults, NODES_MAX // share).grow(_events(text, libyaml))


class _YamlMark(Protocol):
    """What the marks of both parsers have; they count from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class _Page:
    """The lines of one file, for marks."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()  # the same line ends as YAML 1.1, control characters aside

    def mark(self, line: int, column: int) -> Mark:
        """A place, counted from 1."""
        source = self.lines[line - 1] if line <= len(self.lines) else ""
        return Mark(self.file, line, column, source)

    def of(self, mark: _YamlMark | None) -> Mark:
        """A place as PyYAML gives it; the end of the file is moved back onto its last line."""
        if mark is None:
            return self.mark(1, 1)
        line, column = mark.line + 1, mark.column + 1
        if line > len(self.lines) > 0:
            line, column = len(self.lines), len(self.lines[-1]) + 1
        return self.mark(line, column)


def _decoded(file: str, data: bytes, faults: Faults) -> str | None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        faults.add(Mark(file, 1, 1), "the file is in UTF-16", "save it as UTF-8")
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a byte order mark the decoder counts from after it; error.object is what it read.
        before = error.object[: error.start].decode("utf-8")
        rest = error.object[error.start :].decode("utf-8", "replace")
        byte = error.object[error.start]
        mark = _mark_between(file, before, rest)
        faults.add(mark, f"the byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8")
        return None


def _mark_between(file: str, before: str, rest: str) -> Mark:
    """The place where ``rest`` begins; its line is made harmless to a terminal."""
    lines = f"{before}x".splitlines()
    source = lines[-1][:-1] + re.split("[\n\r]", rest, maxsplit=1)[0]
    return Mark(file, len(lines), len(lines[-1]), _UNPRINTABLE.sub("?", source))


def _plain_enough(page: _Page, text: str, faults: Faults) -> bool:
    """Refuses what the parsers would take amiss, with a place."""
    found = _UNPRINTABLE.search(text)
    if found:
        mark = _mark_between(page.file, text[: found.start()], text[found.start() :])
        faults.add(mark, f"the character U+{ord(found[0]):04X} cannot stand here", "remove it")
        return False
    for number, line_text in enumerate(page.lines, start=1):
        # libyaml's work over %TAG lines grows with the square of their number.
        if line_text.startswith("%"):
            mark = page.mark(number, 1)
            faults.add(mark, "a YAML directive, or a line that looks like one", "remove this line")
            return False
    return True


def _events(text: str, libyaml: bool) -> Iterator[yaml.Event]:
    # yaml.parse() is a stream in both parsers: nothing is read far ahead, nothing recurses.
    return yaml.parse(text, Loader=yaml.CSafeLoader if libyaml else yaml.SafeLoader)


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read yet."""

    mapping: bool
    mark: Mark
    broken: bool
    items: list[Node]
    """Of a mapping: keys and values in turn."""


class _Tree:
    """Grows the tree of one file, event by event, without recursion."""

    def __init__(self, page: _Page, faults: Faults, nodes_max: int) -> None:
        self._page = page
        self._faults = faults
        self._open: list[_Open] = []
        self._root: Node | None = None
        self._nodes = 0
        self._nodes_max = nodes_max

    def grow(self, events: Iterator[yaml.Event]) -> Node | None:
        """The root of the tree; None after a fault that leaves none."""
        try:
            for event in events:
                if not self._take(event):
                    break
        except yaml.MarkedYAMLError as error:
            self._syntax(error)
            return None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # PyYAML's own parser lets chr() raise for an escape like "\UFFFFFFFF".
            here = self._open[-1].mark if self._open else self._page.mark(1, 1)
            self._faults.add(here, f"not valid YAML somewhere after this: {error}")
            return None
        if self._open:
            return None
        return self._root or ScalarNode("", True, self._page.mark(1, 1))

    def _take(self, event: yaml.Event) -> bool:
        """Takes one event in; False to stop here."""
        if isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
            mark = self._page.of(event.start_mark)
            self._faults.add(mark, "a second document starts here", "a manifest is one document")
            return False
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        if isinstance(event, yaml.NodeEvent):
            return self._node(event)
        return True

    def _node(self, event: yaml.NodeEvent) -> bool:
        mark = self._page.of(event.start_mark)
        self._nodes += 1
        if self._nodes > self._nodes_max:
            message = f"more than {self._nodes_max} values in one file"
            self._faults.add(mark, message, "split it into conf.d/")
            return False
        broken = self._refused(event, mark)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) == DEPTH_MAX:
                self._faults.add(mark, f"nested more than {DEPTH_MAX} deep", "a manifest never is")
                return False
            mapping = isinstance(event, yaml.MappingStartEvent)
            self._open.append(_Open(mapping, mark, broken, []))
        elif isinstance(event, yaml.ScalarEvent) and not broken:
            self._put(self._scalar(event, mark))
        else:
            self._put(BrokenNode(mark))
        return True

    def _refused(self, event: yaml.NodeEvent, mark: Mark) -> bool:
        """Reports what YAML can do and a manifest cannot; True when the value means nothing now."""
        if isinstance(event, yaml.AliasEvent):
            name = shown(f"*{event.anchor}")
            self._faults.add(mark, f"the alias {name} is not supported", "write the value out")
            return True
        if event.anchor is not None:
            name = shown(f"&{event.anchor}")
            self._faults.add(mark, f"the anchor {name} is not supported", "remove it")
        tag = getattr(event, "tag", None)
        if tag is None:
            return False
        name = shown(str(tag).replace("tag:yaml.org,2002:", "!!"))
        self._faults.add(mark, f"the tag {name} is not supported", "write the plain value")
        return True

    def _scalar(self, event: yaml.ScalarEvent, mark: Mark) -> Node:
        if _CONTROL.search(event.value):
            self._faults.add(
                mark, "text with a line end or another control character", "write it on one line"
            )
            return BrokenNode(mark)
        plain = bool(event.implicit[0])
        if plain and not event.value and self._open:
            # Nothing is written where PyYAML puts it: the place to show is the key before it.
            parent = self._open[-1]
            if parent.mapping and len(parent.items) % 2:
                mark = parent.items[-1].mark
        return ScalarNode(event.value, plain, mark)

    def _put(self, node: Node) -> None:
        if self._open:
            self._open[-1].items.append(node)
        else:
            self._root = node

    def _close(self) -> None:
        done = self._open.pop()
        node: Node
        if done.broken:
            node = BrokenNode(done.mark)
        elif done.mapping:
            node = MappingNode(tuple(self._pairs(done.items)), done.mark)
        else:
            node = ListNode(tuple(done.items), done.mark)
        self._put(node)

    def _pairs(self, items: list[Node]) -> Iterator[tuple[ScalarNode, Node]]:
        for key, value in zip(items[::2], items[1::2], strict=True):
            match key:
                case ScalarNode(text="<<", plain=True):
                    message = "the merge key << is not supported"
                    self._faults.add(key.mark, message, "write the fields out")
                case ScalarNode():
                    yield key, value
                case ListNode() | MappingNode():
                    message = "a list or a mapping cannot be a key"
                    remedy = "put text that begins with a bracket in quotes"
                    self._faults.add(key.mark, message, remedy)
                case BrokenNode():
                    pass

    def _syntax(self, error: yaml.MarkedYAMLError) -> None:
        said = error.problem or error.context or ""
        known = (hint for hint in _HINTS if re.search(hint.said, said))
        hint = next(known, _Hint("", f"not valid YAML: {said}"))
        where = error.context_mark if hint.at_start else error.problem_mark
        mark = self._page.of(where or error.problem_mark or error.context_mark)
        character = mark.source[mark.column - 1 : mark.column]
        if hint.said == _CANNOT_START and character == "\t":
            hint = _TAB
        if character == "[" and "is missing before this" in hint.message:
            hint = _BRACKET
        opened = str(self._page.of(error.context_mark))
        message = hint.message.replace("CHARACTER", character)
        self._faults.add(mark, message, hint.remedy.replace("OPENED", opened))


@dataclass(frozen=True, slots=True)
class _Hint:
    """What a message of the parsers means.

    CHARACTER stands for the one at the mark, OPENED for the place where its context begins.
    """

    said: str
    """A regular expression that finds it in the words of either parser."""
    message: str
    remedy: str = ""
    at_start: bool = False
    """Show where the text in question starts, not where the parser gave up."""


_CANNOT_START = "cannot start any token"
_TAB = _Hint("tab character", "a tab cannot indent here", "use spaces")
_BRACKET = _Hint("", 'text with a "[" within braces or brackets', 'put it in quotes: "char[16]"')
_HINTS = (
    _TAB,
    _Hint(_CANNOT_START, "text cannot start with CHARACTER", "put it in quotes"),
    _Hint(
        "mapping values are not allowed",
        'a ":" cannot stand here',
        "put the text in quotes if the colon is part of it, else check the indentation, and the"
        " colon and the space after the key before",
    ),
    _Hint(
        "sequence entries are not allowed",
        'a "-" cannot stand here',
        "start the list on a line of its own",
    ),
    _Hint("could not find expected ':'", "a key without a value", 'write "name: value"', True),
    _Hint("unexpected end of stream", "the quote opened here is never closed", "close it", True),
    _Hint(
        r"expected ',' or '\]'", 'a "," or "]" is missing before this', "the list begins at OPENED"
    ),
    _Hint(
        "expected ',' or '}'", 'a "," or "}" is missing before this', "the mapping begins at OPENED"
    ),
    _Hint(
        "expected key|expected '-' indicator|expected <block end>",
        "this line does not fit the indentation of those above",
        "indent the lines of one block by the same number of spaces",
    ),
    _Hint("expected '?<document start>", "more text after the end of the document", "remove it"),
    _Hint("expected (the )?node content", "a value is missing before this"),
    _Hint(
        "unknown escape character",
        "an unknown escape in double quotes",
        "write a backslash twice",
        True,
    ),
    _Hint(
        "expected alphabetic or numeric character",
        'text cannot start with "*" or "&"',
        'put it in quotes: "*"',
        True,
    ),
    _Hint("undefined tag handle", "tags are not supported", "write the plain value"),
)
