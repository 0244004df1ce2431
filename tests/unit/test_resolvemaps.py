"""What the manifest says of maps, put together with what objects declare: every mistake."""

import pytest

from bpfkeeperd.maptypes import ARRAY, HASH, PROG_ARRAY
from bpfkeeperd.progtypes import PROGRAM_KINDS
from bpfkeeperd.state import MapSpec
from tests.unit.test_desired import BROKEN, EGRESS, FLOWS, desire, file, problems, program

JUMPS = MapSpec("jumps", PROG_ARRAY, 4, 4, 4, pinned=True)
OBJECTS = "objects:\n  web: {file: /lib/web.o}\n"


def first(text: str) -> str:
    return text.splitlines()[0].partition(": ")[2]


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("web/cuont", "object web has no program cuont: did you mean count?"),
        ("wbe/count", "there is no object wbe: did you mean web?"),
    ],
)
def test_a_slot_that_names_no_program(slot: str, message: str) -> None:
    maps = f"maps:\n  jumps: {{entries: [{{key: 0, value: {slot}}}]}}\n"
    assert first(problems(maps + OBJECTS, web=file(JUMPS, EGRESS))) == message


def test_a_slot_of_a_program_whose_object_cannot_be_read() -> None:
    maps = "maps:\n  jumps: {entries: [{key: 0, value: db/anything}]}\n"
    more = OBJECTS + "  db: {file: /lib/db.o}\n"
    desired = desire(maps + more, web=file(JUMPS, EGRESS), db=BROKEN)
    assert desired.maps["jumps"].fillers == ("db",) and desired.maps["jumps"].generational


OUTER = (
    "maps:\n  outer: {{type: array_of_maps, max_entries: 4, inner: {{type: hash, key: u32,"
    " value: u64, max_entries: 9}}, entries: [{{key: 0, value: {}}}]}}\n"
)


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("flow", "no map flow is kept here: did you mean flows?"),
        (
            "wide",
            "map wide cannot be an inner map of outer: inner value_size is 16, wanted is 8: make it"
            " as the inner definition of outer",
        ),
    ],
)
def test_a_slot_that_names_no_inner_map(slot: str, message: str) -> None:
    wide = MapSpec("wide", 1, 4, 16, 100, pinned=True)
    assert first(problems(OUTER.format(slot) + OBJECTS, web=file(FLOWS, wide))) == message


def test_an_inner_map_of_another_size_is_taken() -> None:
    """The size of a hash is none of its outer map's business."""
    desired = desire(OUTER.format("flows") + OBJECTS, web=file(FLOWS))
    assert desired.maps["outer"].parts == ("flows",)


def test_what_is_counted_of_a_declared_map() -> None:
    """Of an object whose file cannot be used, it is not known whether it is an array now."""
    maps = "maps:\n  slots: {count: nonzero}\n"
    slots = MapSpec("slots", ARRAY, 4, 8, 4, pinned=True)
    assert desire(maps + OBJECTS, web=file(slots, EGRESS)).maps["slots"].count_nonzero
    other = MapSpec("slots", HASH, 4, 8, 4, pinned=True)
    message = "maps.slots cannot have count: nonzero is for arrays, it is a HASH: remove it"
    assert first(problems(maps + OBJECTS, web=file(other, EGRESS))) == message
    before = desire(OBJECTS, web=file(other, EGRESS))
    assert not desire(maps + OBJECTS, before, web=BROKEN).maps["slots"].count_nonzero
    own = "maps:\n  own: {type: array, value: u64, max_entries: 9, count: nonzero}\n"
    assert desire(own + OBJECTS, web=file(EGRESS)).maps["own"].count_nonzero


def test_entries_of_a_declared_map_that_cannot_be_enforced() -> None:
    declared = MapSpec("declared", 22, 0, 4, 4, pinned=True)
    maps = "maps:\n  declared: {entries: [{value: 1}], enforce: true}\n"
    why = "what is taken out of it is meant to be gone"
    message = f"maps.declared cannot have enforce: {why}: remove it"
    assert first(problems(maps + OBJECTS, web=file(declared))) == message


def test_the_former_name_is_that_of_a_map_that_an_object_keeps() -> None:
    maps = "maps:\n  streams: {type: hash, key_size: 4, value_size: 8, max_entries: 100,"
    maps += " rename_from: flows}\n"
    text = problems(maps + OBJECTS, web=file(FLOWS))
    assert first(text).startswith("map streams cannot be renamed from flows: that is a kept map")
    good = desire(OBJECTS, web=file(FLOWS))
    desired = desire(maps + OBJECTS, good, web=BROKEN)
    assert desired.maps.keys() == {"streams", "flows"}, "its file of now may know the new name"


def test_a_map_of_an_object_that_cannot_be_read_now() -> None:
    """What it is called in the file of now, nobody knows."""
    good = desire(OBJECTS, web=file(FLOWS))
    desired = desire("maps: {streams: {rename_from: flows}}\n" + OBJECTS, good, web=BROKEN)
    assert desired.maps.keys() == {"flows"}


def test_an_object_that_the_kernel_would_refuse_stops_no_other() -> None:
    wrong = MapSpec("flows", 1, 0, 8, 100, pinned=True)
    more = OBJECTS + "  db: {file: /lib/db.o}\n"
    desired = desire(more, web=file(wrong, EGRESS), db=file(EGRESS))
    assert list(desired.objects) == ["db"]
    assert "flows" in desired.faults["web"] and "key_size" in desired.faults["web"]


def test_a_program_without_a_type_is_a_fault_of_its_object() -> None:
    untyped = program("parse", "my_section")
    untyped = type(untyped)("parse", "my_section", 0, 0)
    desired = desire(OBJECTS + "  db: {file: /lib/db.o}\n", web=file(untyped), db=file(EGRESS))
    assert list(desired.objects) == ["db"]
    assert desired.faults["web"] == (
        '/lib/web.o: the section "my_section" of program parse does not say what type of program it'
        " is: write programs: {parse: {type: socket_filter}}, or whatever it is"
    )


def test_a_program_that_the_manifest_gives_a_type() -> None:
    untyped = type(EGRESS)("parse", "my_section", 0, 0)

    def typed(kind: str) -> str:
        return f"objects: {{web: {{file: /lib/web.o, programs: {{parse: {{type: {kind}}}}}}}}}"

    wanted = desire(typed("socket_filter"), web=file(untyped)).objects["web"]
    assert wanted.types == {"parse": PROGRAM_KINDS["socket_filter"]}
    other = desire(typed("xdp"), web=file(untyped)).objects["web"]
    assert other.digest != wanted.digest, "it is loaded again"


def test_a_hook_as_type_says_where_a_program_can_be_attached() -> None:
    untyped = type(EGRESS)("parse", "my_section", 0, 0)
    text = (
        "objects: {web: {file: /lib/web.o, programs: {parse: {type: tcx/ingress, attach:"
        " [{interface: eth0}]}}}}"
    )
    (attachment,) = desire(text, web=file(untyped)).objects["web"].attachments
    assert str(attachment) == "web/parse at tcx/ingress of interface:eth0"
