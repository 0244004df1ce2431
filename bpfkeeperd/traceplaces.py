"""Places of tracing: as section names have them, and which of them a hook cannot be at. Pure."""

from bpfkeeperd.hooks import PROG_TYPE_TRACING, Hook, HookKind
from bpfkeeperd.targets import (
    BinaryTarget,
    FunctionTarget,
    IteratorTarget,
    MapTarget,
    Target,
    TracepointTarget,
    is_pattern,
)

_THROUGH_MAPS = ("bpf_map_elem", "bpf_sk_storage_map")
"""Iterators that go through one map."""


def placed(hook: Hook, place: str) -> Target | None:
    """The target that a section names after its hook; None where it names none."""
    match hook.kind:
        case _ if not place:
            return None
        case HookKind.TRACEPOINT | HookKind.RAW_TRACEPOINT:
            return TracepointTarget(place)
        case HookKind.TRACING | HookKind.KPROBE | HookKind.KPROBE_MULTI:
            name, offset = _with_offset(place)
            return None if offset is None else FunctionTarget(name, offset)
        case HookKind.UPROBE | HookKind.UPROBE_MULTI:
            path, _, symbol = place.rpartition(":")
            name, offset = _with_offset(symbol)
            # libbpf would look for others in PATH and where libraries are.
            absolute = path.startswith("/")
            return BinaryTarget(path, name, offset) if absolute and offset is not None else None
        case HookKind.ITERATOR if place not in _THROUGH_MAPS:
            return IteratorTarget(place)
        case _:
            return None


def _with_offset(text: str) -> tuple[str, int | None]:
    """``function+0x10`` taken apart; None for what is no number."""
    name, plus, digits = text.partition("+")
    if not plus:
        return name, 0
    try:
        offset = int(digits, 0)
    except ValueError:
        return name, None
    return name, offset if 0 <= offset < 1 << 63 else None


def fixed_at_load(hook: Hook) -> bool:
    """Whether a program is loaded for one place, and can be attached there alone."""
    return hook.kind is HookKind.TRACING or (
        hook.kind is HookKind.RAW_TRACEPOINT and hook.prog_type == PROG_TYPE_TRACING
    )


def place_fault(hook: Hook, place: str, target: Target, origin: str) -> str:
    """Why a program cannot be at a target; empty when it can, as far as names tell.

    ``place`` is the one that its section names, if any; ``origin`` says what told the hook.
    """
    match target:
        case FunctionTarget(name) | TracepointTarget(name) if fixed_at_load(hook) and place not in (
            "",
            name,
        ):
            return f"its {origin} names another place: write attach: auto, or change the section"
        case FunctionTarget(offset=offset) if offset and (
            hook.kind is not HookKind.KPROBE or hook.name.startswith("kret") or "sys" in hook.name
        ):
            return f"a program of {hook.name} is at a function's beginning or end: leave out offset"
        case FunctionTarget(name) if is_pattern(name) and hook.kind is not HookKind.KPROBE_MULTI:
            return "only kprobe.multi and kretprobe.multi take a pattern of functions"
        case BinaryTarget(symbol=symbol) if (
            is_pattern(symbol) and hook.kind is not HookKind.UPROBE_MULTI
        ):
            return "only uprobe.multi and uretprobe.multi take a pattern of functions"
        case TracepointTarget(name) if ("/" in name) != (hook.kind is HookKind.TRACEPOINT):
            if "/" in name:
                return f"a raw tracepoint has no group: write tracepoint: {name.partition('/')[2]}"
            return f"a tracepoint has a group: write tracepoint: GROUP/{name}"
        case MapTarget() if hook.kind is HookKind.ITERATOR and place not in ("", *_THROUGH_MAPS):
            return f"its {origin} goes through no map: write attach: auto"
        case _:
            return ""
