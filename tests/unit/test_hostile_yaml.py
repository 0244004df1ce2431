"""Text that takes YAML parsers down: here it is a clean error, in a second of CPU time and 100 MB.

Each case is parsed in a process of its own, with libyaml and without: a stack overrun in C would
take the tests with it.
"""

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import assert_never

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpfkeeperd.errors import ManifestError
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
from bpfkeeperd.fields import MANIFEST
from bpfkeeperd.manifest import parse_manifest
from bpfkeeperd.nodes import Faults
from bpfkeeperd.shapes import TYPE_NAMES
from bpfkeeperd.yamlnodes import PURE_SHARE, SIZE_MAX_BYTES, read_tree

SECONDS_MAX = 1.0
KILOBYTES_MAX = 100 << 10
ADDRESS_SPACE_MAX_BYTES = 400 << 20

# Reads the text from its input, prints what came of it. The peak of the resident set is asked of
# /proc: getrusage() of a new program begins with what the one before it had.
CHILD = """
import functools, json, re, sys, time
from bpfkeeperd import manifest
from bpfkeeperd.errors import ManifestError
from bpfkeeperd.yamlnodes import read_tree

def peak_kilobytes():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

data = sys.stdin.buffer.read()
manifest.read_tree = functools.partial(read_tree, libyaml=sys.argv[1] == "libyaml")
before, start = peak_kilobytes(), time.process_time()
try:
    manifest.parse_manifest([("hostile.yaml", data)])
    error = None
except ManifestError as caught:
    error = str(caught)
seconds = time.process_time() - start
print(json.dumps([error, seconds, peak_kilobytes() - before]))
"""

HEAD = "version: 1\n"
MEGABYTE = 1_000_000
QUARTER = 250_000


def laughs(count: int) -> str:
    lines = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, count)]
    return "\n".join([HEAD, "l0: &l0 lol", *lines])


def merges(count: int) -> str:
    lines = [f"m{i}: &m{i}\n  <<: [*m{i - 1}, *m{i - 1}]" for i in range(1, count)]
    return "\n".join([HEAD, "m0: &m0 {a: 1}", *lines])


CASES: dict[str, tuple[str | bytes, str]] = {
    "brackets": ("[" * 30_000, "nested more than 20 deep"),
    "brackets_1m": ("[" * MEGABYTE, "nested more than 20 deep|larger than"),
    "braces": ("{" * 30_000, "nested more than 20 deep"),
    "braces_1m": ("{" * MEGABYTE, "nested more than 20 deep|larger than"),
    "brackets_and_braces": ("[{" * 15_000, "nested more than 20 deep"),
    "braces_and_keys": ("{a: " * 7_500, "nested more than 20 deep"),
    "brackets_over_lines": ("[\n" * 15_000, "nested more than 20 deep"),
    "dashes": ("- " * 15_000, "nested more than 20 deep"),
    "dashes_tight": ("- - - -\n" * 3_750, "must be a mapping|more than 12500 values"),
    "questions": ("? " * 15_000, "nested more than 20 deep"),
    "colons": (":" * MEGABYTE, "cannot stand here|must be a mapping|larger than"),
    "stairs": ("".join(f"{' ' * i}a:\n" for i in range(650)), "nested more than 20 deep"),
    "laughs": (laughs(20), "anchor .* not supported"),
    "merges": (merges(40), "merge key << is not supported"),
    "anchors": ("".join(f"- &a{i} x\n" for i in range(20_000)), "rest was not looked at"),
    "aliases": ("".join(f"- *a{i}\n" for i in range(20_000)), "rest was not looked at"),
    "undefined_alias": (f"{HEAD}maps: *x", "alias .* not supported"),
    "recursive_alias": ("&a [*a]", "alias .* not supported"),
    "tags": (f"{HEAD}maps: !!python/object/apply:os.system ['true']", "tag .* not supported"),
    "many_tags": ("".join(f"- !t{i} x\n" for i in range(20_000)), "rest was not looked at"),
    "tag_directives": ("".join(f"%TAG !a{i}! x\n" for i in range(15_000)), "YAML directive"),
    "documents": ("---\n" * 60_000, "a second document starts here"),
    "same_keys": (HEAD + "a: 1\n" * 6_000, "rest was not looked at"),
    "wrong_keys": (HEAD + "".join(f"map{i}: 1\n" for i in range(6_000)), "was not looked at"),
    "wrong_words": (
        f"{HEAD}maps:\n" + "".join(f" m{i}: {{type: hach{i}}}\n" for i in range(3_000)),
        "rest was not looked at",
    ),
    "long_name": (
        f"{HEAD}objects:\n  ? {'x' * 200_000}\n  : {{file: a, pin_maps: [{'a, ' * 10_000}]}}",
        "rest was not looked at",
    ),
    "many_values": (f"[{'a,' * 120_000}]", "more than (50000|12500) values"),
    "long_key": (f"{HEAD}? {'k' * 200_000}\n: 1", "has no field"),
    "long_word": (f"{HEAD}defaults: {{on_mismatch: {'fail' * 50_000}}}", "cannot be"),
    "long_integer": (f"{HEAD}maps: {{a: {{max_entries: {'9' * 200_000}}}}}", "must be from 0"),
    "long_zeros": (f"{HEAD}maps: {{a: {{max_entries: {'0' * 200_000}}}}}", "must be an integer"),
    "long_hex": (f"{HEAD}maps: {{a: {{max_entries: 0x{'f' * 200_000}}}}}", "must be from 0"),
    "long_version": (f"version: {'9' * 200_000}", "understands version 1"),
    "long_path": (f"{HEAD}pin_root: /{'../' * 60_000}", "cannot hold"),
    "long_listen": (f"{HEAD}metrics: {{listen: '[{':' * 200_000}]:1'}}", "cannot be"),
    "large_values": (
        f"{HEAD}maps: {{a: {{type: hash, key: u32, value_size: 4294967295, max_entries: 9,"
        f" entries: [{{key: 1, value: 1}}]}}}}",
        "at most 16 MiB can be written",
    ),
    "many_entries": (
        f"{HEAD}maps:\n  a:\n    type: hash\n    key: {{a: ipv6}}\n    value: u8[1500]\n"
        f"    max_entries: 1\n    entries:\n"
        + "".join(f"    - {{key: {{a: '::{i:x}'}}, value: {{hex: 00}}}}\n" for i in range(1500)),
        "rest was not looked at|more than 12500 values",
    ),
    "many_members": (
        f"{HEAD}maps: {{a: {{type: hash, max_entries: 1, key: {{"
        + "".join(f"m{i}: u8, " for i in range(6000))
        + "}}}",
        "6000 members, at most 256",
    ),
    "one_inner_map_for_many": (
        f"{HEAD}maps:\n  i: {{type: hash, max_entries: 1, key: {{"
        + "".join(f"m{i}: u8, " for i in range(2000))
        + "}}\n"
        + "".join(
            f"  m{i}: {{type: array_of_maps, max_entries: 1, inner: i}}\n" for i in range(900)
        ),
        "2000 members, at most 256",
    ),
    "scalar": ("a" * MEGABYTE, "must be a mapping|larger than"),
    "quoted": (f"'{'a' * QUARTER}'", "must be a mapping"),
    "quote_not_closed": ("'" + "''" * 120_000, "never closed|must be a mapping"),
    "block_scalar": (f"a: |\n{' x' * 1000}\n" * 120, "another control character"),
    "escapes": ('a: "' + r"\u0041" * 40_000 + '"', "has no field"),
    "newlines": ("\n" * MEGABYTE, "has no version|larger than"),
    "newlines_in_quotes": (f'a: "{chr(10) * QUARTER}"', "another control character"),
    "spaces": (" " * MEGABYTE, "has no version|larger than"),
    "comments": ("#\n" * 500_000, "has no version|larger than"),
    "tabs": ("\t" * QUARTER, "a tab cannot indent|has no version"),
    "tab_indent": (f"{HEAD}maps:\n\ta: 1\n", "a tab cannot indent"),
    "too_large": ("#" * (SIZE_MAX_BYTES + 1), "larger than"),
    "nul": (b"version: 1\0\n", r"U\+0000 cannot stand here"),
    "nuls": (b"\0" * MEGABYTE, r"U\+0000 cannot stand here|larger than"),
    "escape_sequence": (b"version: \x1b[2J\n", r"U\+001B cannot stand here"),
    "nul_escape": (f'{HEAD}objects: {{a: {{file: "a\\0"}}}}', "another control character"),
    "surrogate_escape": (f'{HEAD}objects: {{a: {{file: "\\ud800"}}}}', "not valid YAML|control"),
    "escape_too_big": (f'{HEAD}objects: {{a: {{file: "\\UFFFFFFFF"}}}}', "not valid YAML"),
    "latin_1": ("version: 1\n# café\n".encode("latin-1"), "0xe9 is not UTF-8"),
    "not_utf8": (b"\xff" * 1000, "0xff is not UTF-8|UTF-16"),
    "cut_short": (b"version: 1 # \xf0\x9f\x98", "0xf0 is not UTF-8"),
    "surrogates": (b"version: 1 # \xed\xa0\x80", "0xed is not UTF-8"),
    "utf16": ("version: 1\n".encode("utf-16"), "the file is in UTF-16"),
    "utf16_big": ("\ufeffversion: 1\n".encode("utf-16-be"), "the file is in UTF-16"),
    "utf32": ("version: 1\n".encode("utf-32"), "the file is in UTF-16|cannot stand here"),
    "byte_order_marks": ("\ufeff\ufeffversion: 1\n", r"U\+FEFF cannot stand here"),
}


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MAX_BYTES, ADDRESS_SPACE_MAX_BYTES))


@pytest.mark.parametrize("parser", ["libyaml", "pure"])
@pytest.mark.parametrize("name", CASES)
def test_hostile(name: str, parser: str) -> None:
    text, expected = CASES[name]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, parser],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=limit_memory,
        timeout=60,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    error, seconds, kilobytes = json.loads(done.stdout)
    with pytest.raises(ManifestError, match=expected):
        raise_again(error)
    assert len(error) < 1_000_000
    assert seconds < SECONDS_MAX
    assert kilobytes < KILOBYTES_MAX


def raise_again(error: str | None) -> None:
    if error is not None:
        raised = ManifestError(())
        raised.args = (error,)
        raise raised


def test_both_parsers_are_there() -> None:
    """Else the tests above would test one of them twice."""
    assert yaml.__with_libyaml__


def test_a_size_that_only_libyaml_takes() -> None:
    data = b"#" * (SIZE_MAX_BYTES // PURE_SHARE + 1)
    for libyaml, taken in ((True, True), (False, False)):
        tree = read_tree("m", data, Faults(["m"]), libyaml=libyaml)
        assert (tree is not None) is taken


def parse_whatever(data: bytes) -> None:
    try:
        parse_manifest([("a.yaml", data), ("conf.d/b.yaml", data)])
    except ManifestError as error:
        assert str(error)
        for problem in error.problems:
            assert problem.mark.line >= 1
            assert 1 <= problem.mark.column <= len(problem.mark.source) + 1
    for libyaml in (True, False):
        with contextlib.suppress(ManifestError):
            read_tree("a.yaml", data, Faults(["a.yaml"]), libyaml=libyaml)


WORDS = [
    *("version", "maps", "objects", "file", "attach", "on_mismatch", "fail", "migrate", "hash"),
    *("0", "1", "0x10", "0755", "null", "~", "true", "no", "a", "b", "a.b", "/", "/a", "..", "."),
    *("[::1]:1", "", "none", "<<", "eth0", "1:30"),
]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**65),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.lists(st.sampled_from(WORDS), max_size=2),
    st.dictionaries(st.sampled_from(WORDS), st.sampled_from(WORDS), max_size=2),
)


RAW = st.recursive(
    JUNK | st.sampled_from([*TYPE_NAMES, "char[3]", "u8[2]", "10.0.0.0/8", "::1", "0x01"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from([*WORDS, "hex", "a", "b"]), below, max_size=3)
    ),
    max_leaves=6,
)
"""Types, keys and values, of any form."""


def shaped(kind: Kind) -> st.SearchStrategy[object]:
    """Values of about the shape of a kind, with junk here and there."""
    match kind:
        case Text() | Boolean():
            return st.sampled_from(WORDS) | JUNK
        case Integer():
            return st.integers(0, 300) | JUNK
        case Word(choices=choices):
            return st.sampled_from([str(choice) for choice in choices]) | JUNK
        case ListOf(item=item):
            return st.lists(shaped(item), max_size=3) | JUNK
        case MapOf(value=value):
            return st.dictionaries(st.sampled_from(WORDS), shaped(value), max_size=3) | JUNK
        case Struct(fields=fields):
            optional = {field.name: shaped(field.kind) for field in fields}
            return st.fixed_dictionaries({}, optional=optional) | JUNK
        case Either(kinds=kinds):
            return st.one_of([shaped(one) for one in kinds])
        case Raw():
            return RAW
        case _:
            assert_never(kind)


MARKS = [*"{}[]'\"|>#%&*!@`\\é😀", "---", "...", "&a ", "*a ", "!t ", "\\u", "\\x4"]
BLANKS = ["\n", "\n  ", "\n- ", ": ", ", ", "? ", "\t", "\r", "\r\n", "\x85", "\u2028", " "]
YAML_PIECES = st.sampled_from([*WORDS, *MARKS, *BLANKS])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b'"\\UFFFFFFFF"')
@example(b"\xef\xbb\xbf\xff")
def test_any_bytes(data: bytes) -> None:
    parse_whatever(data)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
@example("\x85x: [")
@example("a\u2028b: {")
def test_any_text(text: str) -> None:
    parse_whatever(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=400, deadline=None)
@given(st.lists(YAML_PIECES, max_size=40))
def test_any_pieces_of_yaml(pieces: list[str]) -> None:
    parse_whatever("".join(pieces).encode())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shaped(MANIFEST))
def test_any_values_in_any_field(document: object) -> None:
    if isinstance(document, dict):
        document["version"] = 1
    parse_whatever(yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass"))
