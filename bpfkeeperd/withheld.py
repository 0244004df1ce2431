"""Versions that did not show their health: what is wanted in their place until the next reload
that somebody asks for. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from bpfkeeperd.actions import Plan
from bpfkeeperd.churn import Withheld
from bpfkeeperd.desired import Desired


def withheld_versions(plan: Plan, reason: str) -> dict[str, Withheld]:
    """Of all objects that a reload loaded before it was rolled back."""
    loads = (load.object for change in plan.changes for load in change.loads)
    return {wanted.name: Withheld(wanted.digest, reason) for wanted in loads}


def former(
    before: Desired | None,
    now: Desired,
    withheld: Mapping[str, Withheld],
) -> Desired:
    """What is wanted after a reload was rolled back: what was wanted before it, and nothing is
    loaded in the place of what runs.

    A keeper that knows nothing of before leaves alone what runs of the objects.
    """
    if before is None:
        return without(now, withheld)
    objects = {}
    for name, wanted in before.objects.items():
        objects[name] = wanted
        if name in withheld:
            objects[name] = replace(wanted, fault=_fault(withheld[name]))
        elif wanted.fault and name in now.objects:
            # Nothing of it was loaded: it runs as it is wanted now, or why not is said there.
            anew = now.objects[name]
            same = anew.digest == wanted.digest
            objects[name] = replace(wanted, fault=anew.fault) if same else anew
    return replace(before, objects=objects)


def without(desired: Desired, withheld: Mapping[str, Withheld]) -> Desired:
    """Does not want the versions that are withheld, as if their files could not be used."""
    objects = {
        name: replace(wanted, fault=_fault(withheld[name]))
        if name in withheld and withheld[name].digest == wanted.digest
        else wanted
        for name, wanted in desired.objects.items()
    }
    return replace(desired, objects=objects)


def _fault(version: Withheld) -> str:
    return (
        f"a new version was loaded and rolled back, since {version.reason}: put a better one in its"
        " place, or reload to try it again"
    )
