"""``python -m tests.systemd``: the tests of this directory, in a guest."""

import argparse
import signal
import sys

from tests.aptfetch import FetchError
from tests.debian import build_package, fetch_dependencies
from tests.systemd.boot import CHECKOUT, run_tests

DIRECTORY = CHECKOUT / ".guests" / "systemd"
TESTS = ("tests/systemd", *(f"tests/system/test_{name}.py" for name in ("every_hook", "matrix")))
"""In the latter every daemon is the service, with all that its unit allows and refuses."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.systemd", description=__doc__)
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the guest")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what pytest gets")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the guest goes, too
    try:
        package, later = build_package(), build_package("+1")
        packages = {"first": [*fetch_dependencies(package), package], "later": [later]}
    except FetchError as error:
        print(error)
        return 1
    result = run_tests(DIRECTORY, packages, arguments.tests, arguments.timeout)
    if result.trouble:
        print(f"the guest: {result.trouble}")
    print(f"{result.seconds:.0f} s; the guest's journal is in {DIRECTORY}/journal")
    return result.code


if __name__ == "__main__":
    sys.exit(main())
