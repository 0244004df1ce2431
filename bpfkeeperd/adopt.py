"""Keeping what somebody else attached, where it is the same as what was about to be attached."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.actions import Attach, Change
from bpfkeeperd.after import After
from bpfkeeperd.directories import exchange, unlink
from bpfkeeperd.errors import KernelError
from bpfkeeperd.foreign import corresponding
from bpfkeeperd.layout import Layout, escape, unescape
from bpfkeeperd.load import Loaded
from bpfkeeperd.observed import Foreign, Observed
from bpfkeeperd.state import MapInfo, ProgramInfo
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.transaction import Transaction

BPF_F_RDONLY_PROG = 1 << 7
"""Programs cannot write into the map: constant data."""


def same_map(ours: int, theirs: int) -> bool:
    """Whether two maps are declared alike, and hold the same where that is constant data, which
    the verifier has taken for granted."""
    fds = [fd for map_id in (ours, theirs) if (fd := kernel.map_by_id(map_id)) is not None]
    try:
        if len(fds) < 2:
            return False
        infos = [kernel.map_info(fd) for fd in fds]
        if _declared(infos[0]) != _declared(infos[1]):
            return False
        if not infos[0].flags & BPF_F_RDONLY_PROG:
            return True
        return _constants(fds[0], infos[0]) == _constants(fds[1], infos[1])
    except KernelError:
        return False
    finally:
        for fd in fds:
            os.close(fd)


def _declared(info: MapInfo) -> tuple[object, ...]:
    name = "" if "." in info.name else info.name  # libbpf puts the object's before a section's
    sizes = (info.key_size, info.value_size, info.max_entries)
    return (name, info.type, *sizes, info.flags, info.map_extra)


def _constants(fd: int, info: MapInfo) -> dict[bytes, bytes | None]:
    return {
        key: kernel.map_lookup(fd, key, info.value_size)
        for key in kernel.map_keys(fd, info.key_size)
    }


def _is_constant(map_id: int) -> bool:
    fd = kernel.map_by_id(map_id)
    if fd is None:
        return False
    with kernel.holding(fd):
        return bool(kernel.map_info(fd).flags & BPF_F_RDONLY_PROG)


@dataclass(slots=True)
class Adoption:
    """What of one change is kept as somebody else made it."""

    programs: dict[tuple[str, str], tuple[int, ProgramInfo]] = field(default_factory=dict)
    """By object and program: the descriptor of theirs that is kept in place of ours."""
    notes: list[str] = field(default_factory=list)
    _claimed: set[int] = field(default_factory=set)

    def takes(self, attach: Attach) -> Foreign | None:
        """The attachment that is kept in place of a new one."""
        found = self.programs.get((attach.attachment.object, attach.attachment.program))
        if found is None or attach.adopt is None or found[1].id != attach.adopt.program.id:
            return None
        return attach.adopt

    def claim(self, other: Foreign) -> bool:
        """Whether a link is still to be had: two attachments can have it in view."""
        link_id = other.link.id if other.link else 0
        if link_id in self._claimed:
            return False
        self._claimed.add(link_id)
        return True

    def fd(self, object_name: str, program: str) -> int | None:
        found = self.programs.get((object_name, program))
        return found[0] if found else None


def adoptable(transaction: Transaction, loaded: Loaded, observed: Observed) -> Adoption:
    """Compares what others attached with what was loaded, or is pinned.

    A program goes with the others of its object: where it shares a map that is not kept with one
    that cannot be adopted, half of them would count here and half there, so that neither is.
    """
    adoption = Adoption()
    for name, wanted in _candidates(loaded.change).items():
        ours = _own_programs(loaded, observed, name)
        kept = _kept(loaded, observed)
        found: dict[str, tuple[ProgramInfo, Mapping[int, int]]] = {}
        for program, others in wanted.items():
            for other in others:
                pairs = corresponding(ours[program], other.program, kept, same_map)
                if pairs is not None:
                    found.setdefault(program, (other.program, pairs))
        for program in _torn(ours, found, kept):
            del found[program]
            adoption.notes.append(
                f"{name}/{program}: what somebody else attached is the same program, but is not"
                " adopted: it shares a map that is not kept with another program of the object"
            )
        for program, (info, _) in found.items():
            fd = kernel.program_by_id(info.id)
            if fd is not None:
                adoption.programs[name, program] = (transaction.close_later(fd), info)
    return adoption


def pin_adopted(
    adoption: Adoption,
    transaction: Transaction,
    change: Change,
    after: After,
    layout: Layout,
    on_step: OnStep,
) -> None:
    """Programs of others take the place of ours that are pinned, where none was loaded."""
    loads = {load.object.name for load in change.loads}
    digests = {link.attachment.object: link.digest for link in change.links}
    for (name, program), (fd, info) in adoption.programs.items():
        pinned = after.before.programs.get(escape(name), {}).get(digests[name], {})
        if name in loads or pinned[escape(program)].id == info.id:
            continue
        on_step(Step.ADOPT, f"{name}/{program}")
        staged = f"{layout.staging}/programs/adopted{info.id}"
        aside = f"{layout.staging}/old_programs/adopted{info.id}"
        path = f"{layout.programs(name, digests[name])}/{escape(program)}"
        kernel.pin(fd, staged)
        transaction.on_undo(functools.partial(unlink, staged))
        exchange(transaction, staged, path, aside)
        after.adopted(name, digests[name], program, info)


def _candidates(change: Change) -> dict[str, dict[str, list[Foreign]]]:
    found: dict[str, dict[str, list[Foreign]]] = {}
    for link in change.links:
        if isinstance(link, Attach) and link.adopt:
            programs = found.setdefault(link.attachment.object, {})
            programs.setdefault(link.attachment.program, []).append(link.adopt)
    return found


def _own_programs(loaded: Loaded, observed: Observed, name: str) -> dict[str, ProgramInfo]:
    """The programs of an object: those just loaded, or those that are pinned."""
    opened = loaded.objects.get(name)
    for load in loaded.change.loads:
        if opened and load.object.name == name:
            return {
                program: kernel.program_info(opened.program_fd(program))
                for program in load.object.programs
            }
    digests = {
        link.digest
        for link in loaded.change.links
        if isinstance(link, Attach) and link.attachment.object == name
    }
    pinned = observed.programs.get(escape(name), {})
    return {
        unescape(program): info for digest in digests for program, info in pinned[digest].items()
    }


def _kept(loaded: Loaded, observed: Observed) -> frozenset[int]:
    ids = {found.pinned.id for found in observed.maps.values() if found.pinned}
    ids |= {kernel.map_info(fd).id for fd in loaded.new_maps.values()}
    return frozenset(ids)


def _torn(
    ours: Mapping[str, ProgramInfo],
    found: Mapping[str, tuple[ProgramInfo, Mapping[int, int]]],
    kept: frozenset[int],
) -> list[str]:
    """Programs that cannot be adopted for the sake of others, which stay ours."""
    constant = functools.cache(_is_constant)
    left = dict(found)
    torn: list[str] = []
    while True:
        staying = {
            map_id
            for program, info in ours.items()
            if program not in left and info.id not in _ids(left.values())
            for map_id in info.map_ids
            if map_id not in kept and not constant(map_id)
        }
        pairs: dict[int, int] = {}
        more = []
        for program, (_, own) in left.items():
            apart = any(pairs.setdefault(a, b) != b for a, b in own.items() if not constant(a))
            if apart or staying & own.keys():
                more.append(program)
        if not more:
            return torn
        torn += more
        for program in more:
            del left[program]


def _ids(found: Iterable[tuple[ProgramInfo, Mapping[int, int]]]) -> set[int]:
    return {info.id for info, _ in found}
