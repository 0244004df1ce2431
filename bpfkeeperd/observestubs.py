"""Looks at stubs, and sees through them: a link that runs one serves the program in its slot."""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from bpfkeeperd import kernel
from bpfkeeperd.directories import names_in
from bpfkeeperd.held import Held
from bpfkeeperd.layout import Layout, LinkKey, StubKey
from bpfkeeperd.observed import ObservedLink, ObservedStub


def observe_stubs(layout: Layout, held: Held) -> dict[StubKey, ObservedStub]:
    """Every stub that is pinned or held.

    Raises:
        KernelError: bpffs cannot be read.
    """
    keys = held.stub_keys()
    for object_name in names_in(layout.stubs):
        keys |= {(object_name, name) for name in names_in(f"{layout.stubs}/{object_name}")}
    return {key: observe_stub(layout, key, held) for key in sorted(keys)}


def observe_stub(layout: Layout, key: StubKey, held: Held | None = None) -> ObservedStub:
    """One stub; what of it is not pinned may be held."""
    with ExitStack() as stack:

        def opened(name: str, kind: kernel.PinKind) -> int | None:
            fd = kernel.pinned(f"{layout.stub_at(key)}/{name}", kind)
            if fd is not None:
                stack.callback(os.close, fd)
            return fd

        stub, slot = opened("stub", kernel.PinKind.PROGRAM), opened("slot", kernel.PinKind.MAP)
        pinned = stub is not None and slot is not None
        if not pinned and held and (fds := held.stub_fds(key)):
            stub, slot = fds
        if stub is None or slot is None:
            return ObservedStub(0, 0, 0, pinned=False)
        program, slot_id = kernel.program_info(stub), kernel.map_info(slot).id
        if slot_id not in program.map_ids:  # one of them is of somebody else's making
            return ObservedStub(0, slot_id, 0)
        return ObservedStub(program.id, slot_id, slot_program(slot), pinned)


def slot_program(slot: int) -> int:
    """The ID of the program that a stub calls; 0 for none."""
    return int.from_bytes(kernel.map_lookup(slot, bytes(4), 4) or b"", sys.byteorder)


def through_stubs(
    links: Mapping[LinkKey, ObservedLink], stubs: Mapping[StubKey, ObservedStub]
) -> dict[LinkKey, ObservedLink]:
    """Links that run a stub, with the program that it calls."""
    serves = {stub.prog_id: stub.serves for stub in stubs.values() if stub.prog_id}
    if not serves:
        return dict(links)
    return {key: through_stub(link, serves) for key, link in links.items()}


def through_stub(link: ObservedLink, serves: Mapping[int, int]) -> ObservedLink:
    stub = link.info.prog_id
    if stub not in serves:
        return link
    return replace(link, info=replace(link.info, prog_id=serves[stub]), stub=stub)
