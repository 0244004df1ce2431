"""Fuzzes one target: ``python -m tests.fuzz btf --seconds 600``.

Inputs that end in a new way are kept as seeds of more. What goes wrong is printed as hexadecimal
text, to be kept in tests/fuzz/corpus, and ends the run; --last names a file that holds the input at
work, for when C code takes the process down.
"""

import argparse
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, Target, kept

SECONDS_MAX = 10
"""For one input."""
ADDRESS_SPACE_MAX_BYTES = 2 << 30
POOL_MAX = 4000


def stop(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"an input takes more than {SECONDS_MAX} s")


def tried(target: Target, data: bytes, last: Path | None) -> str:
    """What came of an input; whatever should not is raised."""
    if last is not None:
        last.write_text(data.hex())
    signal.alarm(SECONDS_MAX)
    try:
        return target(data)
    finally:
        signal.alarm(0)


def fuzz(name: str, seconds: float, executions: int, seed: int, last: Path | None) -> int:
    """Runs until the time or the number of executions is over; 1 when something went wrong."""
    target, make_seeds = TARGETS[name]
    chance = random.Random(seed)
    pool = [*make_seeds(), *(data for _, data in kept(name))]
    ways = {tried(target, data, last) for data in pool}
    done, slowest, end = 0, 0.0, time.monotonic() + seconds
    while done < executions and (start := time.monotonic()) < end:
        data = mutated(chance, chance.choice(pool), pool)
        try:
            way = tried(target, data, last)
        except Exception:
            traceback.print_exc()
            print(f"{name}: seed {seed}, execution {done}:\n{data.hex()}")
            return 1
        done, slowest = done + 1, max(slowest, time.monotonic() - start)
        if way not in ways and len(pool) < POOL_MAX:
            ways.add(way)
            pool.append(data)
    print(
        f"{name}: {done} executions, {len(ways)} ways to end, the slowest {slowest * 1000:.0f} ms"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--executions", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--last", type=Path, default=None)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_MAX_BYTES, ADDRESS_SPACE_MAX_BYTES))
    signal.signal(signal.SIGALRM, stop)
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32)
    return fuzz(arguments.target, arguments.seconds, arguments.executions, seed, arguments.last)


if __name__ == "__main__":
    sys.exit(main())
