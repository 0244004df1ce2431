"""What is after a reload that went well: what was observed before it, with what was done.

Looking at everything once more would cost a third of a large reload; after a failure it is done.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bpfkeeperd import kernel
from bpfkeeperd.actions import Detach, Removal, RemoveArray, RemovePrograms, RemoveStub, Swap
from bpfkeeperd.desired import Attachment
from bpfkeeperd.hooks import NETKIT_PEER
from bpfkeeperd.layout import LinkKey, StubKey, escape, is_array_name
from bpfkeeperd.observed import Observed, ObservedLink, ObservedMap, ObservedStub, Place
from bpfkeeperd.observestubs import through_stub
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.state import LinkInfo, Neighbour, ProgramInfo
from bpfkeeperd.targets import MapTarget, Target


@dataclass(slots=True)
class After:
    """Collects what changes; `observed` gives the whole."""

    before: Observed
    maps: dict[str, ObservedMap] = field(default_factory=dict)
    programs: dict[str, dict[str, dict[str, ProgramInfo]]] = field(default_factory=dict)
    links: dict[LinkKey, ObservedLink] = field(default_factory=dict)
    orders: dict[Place, tuple[Neighbour, ...]] = field(default_factory=dict)
    gone_links: set[LinkKey] = field(default_factory=set)
    gone_programs: set[tuple[str, str]] = field(default_factory=set)
    """Escaped object name and digest."""
    gone_arrays: set[str] = field(default_factory=set)
    stubs: dict[StubKey, ObservedStub] = field(default_factory=dict)
    gone_stubs: set[StubKey] = field(default_factory=set)
    unsure: bool = False
    """Somebody else changed something meanwhile: it takes a look to know."""

    def made_map(self, name: str, fd: int) -> None:
        info = kernel.map_info(fd)
        self.maps[name] = ObservedMap(pinned=info, layouts=kernel.btf_layouts(*info.btf))

    def has_rights(self, name: str, rights: Rights) -> None:
        """What the pin of a map has now."""
        self.maps[name] = replace(self.maps.get(name, self.before.maps[name]), rights=rights)

    def renamed(self, name: str) -> None:
        """A map that has its new name now."""
        self.maps[name] = replace(self.maps.get(name, self.before.maps[name]), source="")

    def wrote(self, name: str, places: tuple[int, ...]) -> None:
        """Entries that are as the manifest has them."""
        found = self.maps.get(name, self.before.maps[name])
        astray = tuple(place for place in found.astray if place not in places)
        self.maps[name] = replace(found, astray=astray)

    def loaded(self, object_name: str, digest: str, programs: dict[str, int]) -> None:
        """Programs by name, as descriptors; the object's name is escaped."""
        infos = {escape(name): kernel.program_info(fd) for name, fd in programs.items()}
        self.programs[object_name] = {digest: infos}

    def adopted(self, object_name: str, digest: str, program: str, info: ProgramInfo) -> None:
        """A pinned program that somebody else's took the place of."""
        escaped = escape(object_name)
        digests = self.programs.get(escaped) or self.before.programs[escaped]
        loaded = {**digests[digest], escape(program): info}
        self.programs[escaped] = {digest: loaded}

    def attached(self, attachment: Attachment, fd: int) -> None:
        """A new link, by its descriptor."""
        info = kernel.link_info(fd)
        index = self.before.targets.get(attachment.target)
        if attachment.hook.attach_type == NETKIT_PEER and isinstance(index, int):
            info = replace(info, target_id=index)
        self.recorded(attachment.key, info)

    def recorded(self, key: LinkKey, info: LinkInfo) -> None:
        """An attachment, also one without a link."""
        serves = {stub.prog_id: stub.serves for stub in self.stubs.values()}
        self.links[key] = through_stub(ObservedLink(info), serves)

    def swapped_all(self, actions: Iterable[Swap]) -> None:
        """Links that run another program now, and are otherwise as they were."""
        ids: dict[tuple[str, str], int] = {}
        for action in actions:
            key, link = action.attachment.key, action.link
            prog_id = ids.get(key[:2])
            if prog_id is None:
                prog_id = ids[key[:2]] = self._prog_id(action)
            # `replace` takes three times as long.
            info = LinkInfo(
                link.id, prog_id, link.type, link.target_id, link.attach_type, link.detail
            )
            self.links[key] = ObservedLink(info)

    def _prog_id(self, action: Swap) -> int:
        """Of the program that is swapped in: loaded now, or before."""
        object_name, program, _ = action.attachment.key
        digests = self.programs.get(object_name) or self.before.programs[object_name]
        return digests[action.digest][program].id

    def swapped(self, action: Swap, prog_fd: int) -> None:
        if action.key != action.attachment.key:
            self.gone_links.add(action.key)
        loaded = self.programs.get(action.attachment.key[0])
        if loaded is None:
            prog_id = kernel.program_info(prog_fd).id
        else:
            (programs,) = loaded.values()
            prog_id = programs[action.attachment.key[1]].id
        stub = self.stubs.get(action.attachment.key[:2]) if action.attachment.exact else None
        self.links[action.attachment.key] = ObservedLink(
            replace(action.link, prog_id=prog_id), stub=stub.prog_id if stub else 0
        )

    def removed(self, removal: Removal) -> None:
        match removal:
            case Detach(key):
                self.gone_links.add(key)
            case RemovePrograms(object_name, digest):
                self.gone_programs.add((object_name, digest))
            case RemoveArray(name):
                self.gone_arrays.add(name)
            case RemoveStub(key):
                self.gone_stubs.add(key)

    def observed(self) -> Observed:
        links = {**self.before.links, **self.links}
        programs = {**self.before.programs, **self.programs}
        for object_name, digest in self.gone_programs:
            if object_name not in self.programs:
                left = dict(programs[object_name])
                del left[digest]
                programs[object_name] = left
        made_arrays = [name for name in self.maps if is_array_name(name)]
        stubs = {**self.before.stubs, **self.stubs}
        new_maps: dict[Target, int | str] = {
            MapTarget(name): found.pinned.id for name, found in self.maps.items() if found.pinned
        }
        return replace(
            self.before,
            stubs={key: stub for key, stub in stubs.items() if key not in self.gone_stubs},
            targets={**self.before.targets, **new_maps},
            maps={**self.before.maps, **self.maps},
            programs={name: digests for name, digests in programs.items() if digests},
            links={key: link for key, link in links.items() if key not in self.gone_links},
            orders={**self.before.orders, **self.orders},
            arrays=tuple(sorted({*self.before.arrays, *made_arrays} - self.gone_arrays)),
        )
