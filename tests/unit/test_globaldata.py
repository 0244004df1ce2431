"""Global data as variables: found in a layout, and carried over by name."""

import pytest

from bpfkeeperd.globaldata import Variable, carried_over, variables

LAYOUT = """0:64:variable:events
64:96:variable:total
64:64:int:total.packets
128:32:int:total.bytes
192:128:variable:list
192:32:int:list[0]"""


def test_variables() -> None:
    assert variables(LAYOUT) == {
        "events": Variable(0, 8, ()),
        "total": Variable(8, 12, ("0:64:int:.packets", "64:32:int:.bytes")),
        "list": Variable(24, 16, ("0:32:int:[0]",)),
    }
    assert variables("") == {}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("0:96:variable:sum\n0:64:int:sum.packets\n64:32:int:sum.bytes", True),
        ("320:96:variable:total\n320:64:int:total.packets\n384:32:int:total.bytes", True),
        ("0:96:variable:total\n0:64:int:total.bytes\n64:32:int:total.packets", False),
        ("0:128:variable:total\n0:64:int:total.packets\n64:32:int:total.bytes", False),
        ("0:96:variable:total", False),
    ],
    ids=["another name", "another place", "members swapped", "another size", "no members"],
)
def test_the_same_variable(other: str, same: bool) -> None:
    """Its name and its place are no part of what its bytes mean."""
    (found,) = variables(other).values()
    assert variables(LAYOUT)["total"].same(found) is same


def test_values_are_carried_over_by_name() -> None:
    have = variables("0:32:variable:a\n32:32:variable:b\n64:64:variable:gone")
    want = variables("0:32:variable:new\n32:32:variable:b\n64:32:variable:a")
    old = b"AAAABBBBgonegone"
    assert carried_over(old, b"newnBBBBAAAA".lower(), have, want, ["a", "b"]) == b"newnBBBBAAAA"
    assert carried_over(old, b"newnbbbbaaaa", have, want, ["a"]) == b"newnbbbbAAAA"
    assert carried_over(old, b"newnbbbbaaaa", have, want, []) == b"newnbbbbaaaa"
