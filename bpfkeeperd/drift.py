"""What a plan says about now: how many differences of which kind from the manifest. Pure."""

from collections.abc import Mapping, Sequence

from bpfkeeperd.actions import (
    Action,
    Attach,
    CreateMap,
    Detach,
    Displace,
    LoadObject,
    Plan,
    RecreateMap,
    Refusal,
    RemoveArray,
    RemovePrograms,
    RemoveStub,
    RenameMap,
    RenewMap,
    RestoreLink,
    RestoreMap,
    RestoreProgram,
    RestoreStub,
    SetRights,
    Swap,
    WriteEntries,
)
from bpfkeeperd.state import Difference

KINDS = (
    "map_missing",
    "map_differs",
    "map_pin_lost",
    "map_pin_rights",
    "entries_differ",
    "program_pin_lost",
    "object_not_loaded",
    "object_held_back",
    "attachment_missing",
    "attachment_replaced",
    "attachment_misplaced",
    "attachment_pin_lost",
    "foreign",
    "target_missing",
    "leftover",
)


def drift(plan: Plan) -> Mapping[str, int]:
    """Every kind with its number; all zero when everything is as the manifest says."""
    return count(differences(plan))


def count(found: Sequence[Difference]) -> Mapping[str, int]:
    counts = dict.fromkeys(KINDS, 0)
    for difference in found:
        counts[difference.kind] += 1
    return counts


def differences(plan: Plan) -> tuple[Difference, ...]:
    """Everything that is not as the manifest says."""
    found = [Difference(kind_of(action), str(action)) for action in plan.actions]
    found += [Difference("attachment_misplaced", text) for text in plan.misplaced]
    found += [Difference(_refused_kind(refusal), str(refusal)) for refusal in plan.refusals]
    found += [Difference("foreign", note) for note in plan.notes]
    return tuple(found)


def _refused_kind(refusal: Refusal) -> str:
    return "foreign" if refusal.foreign else _REFUSED[refusal.kind]


_REFUSED = {
    "map": "map_differs",
    "object": "object_held_back",
    "entry": "entries_differ",
    "attachment": "target_missing",
}


def kind_of(action: Action) -> str:
    """What an action puts right, as one of `KINDS`."""
    match action:
        case RestoreMap():
            return "map_pin_lost"
        case RestoreLink() | RestoreStub():
            return "attachment_pin_lost"
        case RestoreProgram():
            return "program_pin_lost"
        case CreateMap():
            return "map_missing"
        case RecreateMap() | RenewMap() | RenameMap():
            return "map_differs"
        case SetRights():
            return "map_pin_rights"
        case WriteEntries():
            return "entries_differ"
        case LoadObject():
            return "object_not_loaded"
        case Attach():
            return "attachment_missing"
        case Swap():
            return "attachment_replaced"
        case Displace():
            return "foreign"
        case Detach() | RemovePrograms() | RemoveArray() | RemoveStub():
            return "leftover"
