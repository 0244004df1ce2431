"""What a plan says about now: how many differences of which kind from the manifest. Pure."""

from collections.abc import Mapping

from bpfkeeperd.actions import (
    Action,
    Attach,
    CreateMap,
    Detach,
    LoadObject,
    Plan,
    RecreateMap,
    RemoveArray,
    RemovePrograms,
    RenameMap,
    RenewMap,
    RestoreLink,
    RestoreMap,
    Swap,
    WriteEntries,
)

KINDS = (
    "map_missing",
    "map_differs",
    "map_pin_lost",
    "entries_differ",
    "object_not_loaded",
    "object_held_back",
    "attachment_missing",
    "attachment_replaced",
    "attachment_misplaced",
    "attachment_pin_lost",
    "target_missing",
    "leftover",
)


def drift(plan: Plan) -> Mapping[str, int]:
    """Every kind with its number; all zero when everything is as the manifest says."""
    counts = dict.fromkeys(KINDS, 0)
    for action in plan.actions:
        counts[_kind(action)] += 1
    counts["attachment_misplaced"] = len(plan.misplaced)
    for refusal in plan.refusals:
        match refusal.kind:
            case "map":
                counts["map_differs"] += 1
            case "object":
                counts["object_held_back"] += 1
            case "entry":
                counts["entries_differ"] += 1
            case _:
                counts["target_missing"] += 1
    return counts


def _kind(action: Action) -> str:
    match action:
        case RestoreMap():
            return "map_pin_lost"
        case RestoreLink():
            return "attachment_pin_lost"
        case CreateMap():
            return "map_missing"
        case RecreateMap() | RenewMap() | RenameMap():
            return "map_differs"
        case WriteEntries():
            return "entries_differ"
        case LoadObject():
            return "object_not_loaded"
        case Attach():
            return "attachment_missing"
        case Swap():
            return "attachment_replaced"
        case Detach() | RemovePrograms() | RemoveArray():
            return "leftover"
