"""Measures the keeper against what people do without it, and prints one table.

Every figure is one of two that were had in the same run, taking turns: what counts is the ratio.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator

from bpfkeeperd import kernel
from bpfkeeperd.errors import KeeperError
from tests.bench.arrivals import measure_arrivals
from tests.bench.attachments import measure_attachments
from tests.bench.daemon import BenchError
from tests.bench.dump import measure_dumps
from tests.bench.gap import measure_gaps
from tests.bench.idle import measure_idle
from tests.bench.places import Places, own_places
from tests.bench.reload import measure_reloads
from tests.bench.scrape import measure_scrapes
from tests.bench.table import Row, rows_text

Measurement = Callable[[Places, bool], Iterator[Row]]
MEASUREMENTS: dict[str, Measurement] = {
    "reload": lambda places, quick: measure_reloads(places, rounds=5 if quick else 21),
    "gap": lambda places, quick: measure_gaps(places, rounds=1 if quick else 10),
    "attachments": lambda places, quick: measure_attachments(places, rounds=5 if quick else 21),
    "arrivals": lambda places, quick: measure_arrivals(places),
    "idle": lambda places, quick: measure_idle(places),
    "scrape": lambda places, quick: measure_scrapes(
        places, rounds=5 if quick else 21, large_entries=1_000_000 if quick else 10_000_000
    ),
    "dump": lambda places, quick: measure_dumps(places, rounds=3 if quick else 11),
}

NOTES = """\
Reloads are timed by a client of the control socket; plain libbpf is plain_loader.c, a process that
opens, loads, gives kept maps to, swaps in and closes the same objects, one after the other.
Missed: delivered by the interface (rx_packets) and noted by no program; every packet has a number.
Counting includes all other maps of the machine.
A dump is the whole command, from start to end, its output read by nobody (/dev/null); it is timed
against BPF_MAP_LOOKUP_BATCH alone, in a C program that throws away what it reads."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "only", nargs="*", metavar="MEASUREMENT", help=f"default: all of {', '.join(MEASUREMENTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    options = parser.parse_args()
    unknown = set(options.only) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = _options()
    if os.geteuid() != 0:
        print("cannot measure: it takes root: sudo make bench", file=sys.stderr)
        return 1
    rows: list[Row] = []
    broken, name = "", "anything"
    try:
        with own_places() as places:
            for name in options.only or MEASUREMENTS:
                print(f"measuring: {name}", file=sys.stderr, flush=True)
                rows.extend(MEASUREMENTS[name](places, options.quick))
    except (BenchError, KeeperError, subprocess.CalledProcessError) as error:
        broken = f"cannot measure {name}: {error}"
    if rows:
        _print_rows(rows)
    if broken:
        print(broken, file=sys.stderr)
        return 1
    missed = [row for row in rows if row.met is False]
    return 1 if missed and options.strict else 0


def _print_rows(rows: list[Row]) -> None:
    print(
        f"Linux {platform.release()}, {kernel.possible_cpus()} CPUs, Python"
        f" {platform.python_version()}; medians of rounds that took turns\n"
    )
    print(rows_text(rows))
    print(f"\n{NOTES}")


if __name__ == "__main__":
    sys.exit(main())
