"""Stubs on the ideal machine: a link that runs one serves the program in its slot."""

from dataclasses import replace
from typing import TYPE_CHECKING

from bpfkeeperd.actions import RemoveStub, RestoreStub, Swap
from bpfkeeperd.desired import Attachment
from bpfkeeperd.layout import LinkKey, StubKey
from bpfkeeperd.observed import ObservedLink, ObservedStub

if TYPE_CHECKING:
    from tests.unit.ideal import Ideal


def seen(ideal: "Ideal", key: LinkKey) -> ObservedLink:
    """A link as it is observed: with the program that its stub calls."""
    link = ideal.links[key]
    for stub in ideal.stubs.values():
        if link.info.prog_id == stub.prog_id:
            info = replace(link.info, prog_id=stub.serves)
            return replace(link, info=info, stub=stub.prog_id)
    return link


def loaded(ideal: "Ideal") -> set[tuple[str, str, str]]:
    """Every program: object, digest and name."""
    return {
        (name, digest, program)
        for name, digests in ideal.programs.items()
        for digest, programs in digests.items()
        for program in programs
    }


def make(ideal: "Ideal", key: StubKey, serves: int, *, pinned: bool = True) -> ObservedStub:
    ideal.stubs[key] = ObservedStub(ideal.new_id(), ideal.new_id(), serves, pinned)
    return ideal.stubs[key]


def put_behind(ideal: "Ideal", attachment: Attachment, prog_id: int) -> int:
    """What a new link runs: the program, or the program's stub, which calls it from now on."""
    if not attachment.exact:
        return prog_id
    key = attachment.key[:2]
    if key not in ideal.stubs:
        make(ideal, key, prog_id)
    _write(ideal, key, prog_id)
    return ideal.stubs[key].prog_id


def swap(ideal: "Ideal", action: Swap, stub: StubKey, prog_id: int) -> None:
    """The stub calls another program, for whichever of its links this is done first."""
    link, own = ideal.links.pop(action.key), action.attachment.key[:2]
    if stub != own and stub in ideal.stubs:
        assert own not in ideal.stubs, "there are two, and the link is on the other"
        ideal.stubs[own] = ideal.stubs.pop(stub)
    assert ideal.stubs[own].prog_id == link.info.prog_id, "it runs another stub"
    _write(ideal, own, prog_id)
    ideal.links[action.attachment.key] = link


def restore(ideal: "Ideal", action: RestoreStub) -> None:
    assert not ideal.stubs[action.key].pinned
    ideal.stubs[action.key] = replace(ideal.stubs[action.key], pinned=True)


def remove(ideal: "Ideal", action: RemoveStub) -> None:
    stub = ideal.stubs.pop(action.key)
    assert all(link.info.prog_id != stub.prog_id for link in ideal.links.values()), "it is run"


def _write(ideal: "Ideal", key: StubKey, prog_id: int) -> None:
    assert ideal.stubs[key].pinned, "it cannot be opened"
    ideal.stubs[key] = replace(ideal.stubs[key], serves=prog_id)
