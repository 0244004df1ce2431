"""Names and paths under a pin root."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bpfkeeperd.layout import NAME_MAX, RESERVED_NAMES, Layout, escape, name_fault, unescape

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
"""Surrogates stand for bytes that are no UTF-8, as os.fsdecode() makes them: see FILE_NAMES."""
FILE_NAMES = st.binary().map(lambda name: name.decode("utf-8", "surrogateescape"))
ANY = TEXT | FILE_NAMES | st.text("/.-~\\x0aA\x00é", max_size=90)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("count_packets", "count_packets"),
        ("cgroup:system.slice/web.service", "cgroup:system\\x2eslice-web\\x2eservice"),
        ("interface:eth0.100@blue+generic", "interface:eth0\\x2e100\\x40blue\\x2bgeneric"),
        ("a-b", "a\\x2db"),
        ("a\\b~", "a\\x5cb\\x7e"),
        ("é", "\\xc3\\xa9"),
        ("\udcff", "\\xff"),
        ("a\n", "a\\x0a"),
        ("." * 50, "\\x2e" * 50),
        ("", ""),
    ],
)
def test_escape(text: str, name: str) -> None:
    assert escape(text) == name
    assert unescape(name) == text


def test_a_long_name_is_cut_and_ends_in_a_hash() -> None:
    for text in ("a" * 201, "." * 51, "a.b/" * 60):
        name = escape(text)
        assert len(name) == 160 + 1 + 32 and name[160] == "~"
        assert int(name[161:], 16) >= 0


@given(ANY)
@example("a" * 300)
@example("/" * 200)
@example("." * 51)
def test_escaped_text_is_a_name_and_comes_back(text: str) -> None:
    name = escape(text)
    assert len(name.encode()) <= NAME_MAX
    assert name.isascii() and not {".", "/", "\0"} & set(name)
    if text:
        assert name not in ("", ".", "..")
    if "~" in name:  # too long: it was cut
        assert unescape(name) == name and len(text.encode("utf-8", "surrogateescape")) > 50
    else:
        assert unescape(name) == text


@given(ANY, ANY)
@example("a" * 300, "a" * 299 + "b")
@example("a" * 300, "a" * 301)
@example("a/b", "a-b")
@example("\\x2f", "/")
@example("é", "\udcc3\udca9")
def test_escaped_texts_are_told_apart(one: str, other: str) -> None:
    """By their bytes: those are what a name of the kernel is."""
    same = one.encode("utf-8", "surrogateescape") == other.encode("utf-8", "surrogateescape")
    assert (escape(one) == escape(other)) == same


@given(st.text("ab.", min_size=190, max_size=215), st.text("ab.", min_size=190, max_size=215))
def test_a_cut_name_is_no_whole_name(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)
    assert escape(escape(one)) != escape(one) or one.isalnum()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("counts", None),
        ("a-name:with~anything\\", None),
        ("x" * 255, None),
        ("é" * 127, None),
        ("", "a name cannot be empty"),
        ("my.map", "bpffs refuses a dot in a name"),
        ("..", "bpffs refuses a dot in a name"),
        ("a\0b", "a name cannot hold a null byte"),
        ("tc/globals/acl", None),
        ("a/b/c/d", None),
        ("a/b/c/d/e", "at most 3 directories can stand before a name"),
        ("/a", "a name cannot begin or end with a slash, or have two in a row"),
        ("a/", "a name cannot begin or end with a slash, or have two in a row"),
        ("a//b", "a name cannot begin or end with a slash, or have two in a row"),
        ("a/../b", "bpffs refuses a dot in a name"),
        ("a/" + "x" * 256, "bpffs takes names of at most 255 bytes"),
        ("bpfkeeperd/a", "this name is the keeper's own directory in the pin root"),
        ("a/bpfkeeperd", None),
        (".bss", "global data is kept under another name: write pin_maps: {.bss: NAME}"),
        (".rodata.str1", "it is constant data, which is never kept: a new version brings its own"),
        ("x" * 256, "bpffs takes names of at most 255 bytes"),
        ("é" * 128, "bpffs takes names of at most 255 bytes"),
        ("bpfkeeperd", "this name is the keeper's own directory in the pin root"),
    ],
)
def test_name_fault(name: str, fault: str | None) -> None:
    assert name_fault(name) == fault


def test_paths() -> None:
    layout = Layout("/sys/fs/bpf")
    assert layout.own == "/sys/fs/bpf/bpfkeeperd"
    assert layout.map("counts") == "/sys/fs/bpf/counts"
    assert layout.object("web.bpf") == "/sys/fs/bpf/bpfkeeperd/objects/web\\x2ebpf"
    assert layout.programs("web", "abc") == "/sys/fs/bpf/bpfkeeperd/objects/web/abc"
    assert layout.link_at(("a", "b", "c")) == "/sys/fs/bpf/bpfkeeperd/links/a/b/c"
    assert layout.staging == "/sys/fs/bpf/bpfkeeperd/staging"
    assert {"bpfkeeperd"} == RESERVED_NAMES
