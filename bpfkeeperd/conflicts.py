"""Two maps under one name: one that is pinned, and one that the service manager kept. Pure.

The pin is the truth where it is the same map, or where the keeper pinned it. Else somebody put
another map there while no daemon ran, and only a person can say which one is to stay.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from bpfkeeperd.observed import Observed, ObservedMap


def with_conflicts(
    observed: Observed,
    stored: Mapping[str, int],
    pinned_here: Callable[[str, int], bool] = lambda _name, _id: False,
) -> Observed:
    """Names the map that was kept beside another one that is pinned: `ObservedMap.stored_id`.

    ``stored`` has the IDs of kept maps by the names of their pins; ``pinned_here`` says whether
    the keeper knows a map under a name as its own doing.
    """
    if not stored:
        return observed
    maps: dict[str, ObservedMap] = dict(observed.maps)
    for name, found in observed.maps.items():
        pin_name = found.source or name
        kept = stored.get(pin_name)
        if not kept or found.pinned is None or found.pinned.id == kept:
            continue
        if not pinned_here(pin_name, found.pinned.id):
            maps[name] = replace(found, stored_id=kept)
    return replace(observed, maps=maps)


def conflict_ids(observed: Observed) -> dict[str, int]:
    """Names of pins in conflict, with the IDs of the maps that were kept."""
    return {
        found.source or name: found.stored_id
        for name, found in observed.maps.items()
        if found.stored_id
    }


def undecided(observed: Observed, stored: Mapping[str, int], *, unread: bool) -> frozenset[str]:
    """Names of stored maps that have to be held as they are: those in conflict, those whose pin
    cannot be read, and, as long as an object is ``unread``, those that may be its own."""
    by_pin = {found.source or name: found for name, found in observed.maps.items()}
    return frozenset(
        name
        for name in stored
        if (by_pin[name].stored_id or by_pin[name].fault if name in by_pin else unread)
    )


def conflict_text(pinned_id: int, stored_id: int, path: str) -> str:
    """Why nothing is done, and what to do."""
    return (
        f"map ID {pinned_id} is pinned, but the service manager kept map ID {stored_id} under this"
        " name, and somebody else pinned the other one while no daemon ran. Nothing is touched:"
        " to keep what is pinned: bpfkeeperd reload --wait --keep-pinned; to have the kept one"
        f" back: rm {path}"
    )
