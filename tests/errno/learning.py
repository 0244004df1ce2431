"""Fails each call by which libbpf asks the kernel what it can do, and loads an object afterwards.

Started with the shim preloaded and the path of an object; tells, as JSON, how often which came of
it, and what is wrong.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from bpfkeeperd import kernel
from bpfkeeperd.errors import LibbpfError, ObjectError
from tests.errno.runner import ERRNOS, in_child
from tests.errno.shim import Call, Shim, Shot

WRONG = "wrong"


def load(data: bytes) -> tuple[object, ...]:
    """What the kernel has of an object: flags and BTF of its data, and maps of its programs."""
    with kernel.open_object(data, "globals") as opened:
        opened.load()
        maps = [kernel.map_info(opened.map_fd(spec.name)) for spec in opened.spec.maps]
        programs = [
            kernel.program_info(opened.program_fd(spec.name)) for spec in opened.spec.programs
        ]
        return (
            *((info.name, info.flags, bool(info.btf[0]), info.btf[1:]) for info in maps),
            *((info.name, len(info.map_ids)) for info in programs),
        )


def case(shim: Shim, shot: Shot | None, data: bytes) -> tuple[str, list[Call], object]:
    """What came of it; the calls; what the object is when it is loaded then."""
    outcome = "learned"
    with shim.armed(shot):
        try:
            kernel.learn_features()
        except LibbpfError:
            outcome = "spent"
        except ObjectError:
            outcome = "later"
    calls = shim.calls()
    if outcome == "spent":
        try:
            load(data)
        except LibbpfError:
            return outcome, calls, None
        return WRONG, calls, "loads although it does not know"
    return outcome, calls, load(data)


def main() -> None:
    data = Path(sys.argv[1]).read_bytes()
    shim = Shim(Path("/nowhere"))
    clean = in_child(lambda: case(shim, None, data))
    assert not isinstance(clean, str), clean
    _, calls, wanted = clean
    outcomes, faults = Counter[str](), list[str]()
    for place in range(len(calls)):
        shot = Shot(place, place, ERRNOS[place % len(ERRNOS)])
        found = in_child(lambda shot=shot: case(shim, shot, data))  # type: ignore[misc]
        if isinstance(found, str):
            faults.append(f"{shot}: {found}")
            continue
        outcome, _, loaded = found
        outcomes[outcome] += 1
        if outcome != "spent" and loaded != wanted:
            faults.append(f"{shot} of {calls[place]}: {outcome}: {loaded} for {wanted}")
    json.dump({"calls": len(calls), "outcomes": outcomes, "faults": faults}, sys.stdout)


if __name__ == "__main__":
    main()
