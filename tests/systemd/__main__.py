"""``python -m tests.systemd``: the tests of this directory, in a guest."""

import argparse
import sys

from tests.systemd.boot import CHECKOUT, run_tests

DIRECTORY = CHECKOUT / ".guests" / "systemd"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.systemd", description=__doc__)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the guest")
    parser.add_argument("tests", nargs="*", default=["tests/systemd"], help="what pytest gets")
    arguments = parser.parse_args()
    result = run_tests(DIRECTORY, arguments.tests, arguments.timeout)
    if result.trouble:
        print(f"the guest: {result.trouble}")
    print(f"{result.seconds:.0f} s; the guest's journal is in {DIRECTORY}/journal")
    return result.code


if __name__ == "__main__":
    sys.exit(main())
