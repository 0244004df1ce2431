"""``python -m tests.guests``: test files on other kernels, and a table of how it went."""

import argparse
import sys
from pathlib import Path

from tests.aptfetch import FetchError
from tests.guests.boot import CHECKOUT, Counts, Result, run_tests
from tests.guests.fetch import RELEASES, fetch_kernel

DIRECTORY = CHECKOUT / ".guests"
KERNELS = ("6.1", "6.12")
TESTS = tuple(
    f"tests/kernel/test_{name}.py"
    for name in (
        *("probes", "hooks", "trace_hooks", "net_hooks", "net_order", "sockmap", "stub"),
        *("struct_ops", "rollback_trace", "rollback_net", "adoption", "health", "pathwatch"),
        *("pins", "reload"),
    )
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guests", description=__doc__)
    parser.add_argument("--kernels", default=" ".join(KERNELS), help=f"of {', '.join(RELEASES)}")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each guest")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what to give to pytest")
    arguments = parser.parse_args()
    kernels = arguments.kernels.replace(",", " ").split()
    if unknown := [name for name in kernels if name not in RELEASES]:
        parser.error(f"unknown kernel {', '.join(unknown)}: there are {', '.join(RELEASES)}")
    results = {}
    for name in kernels:
        directory = DIRECTORY / name
        directory.mkdir(parents=True, exist_ok=True)
        print(f"== Linux {name}", flush=True)
        results[name] = _one(name, directory, [*arguments.tests], arguments.timeout)
    print(table(results))
    return 0 if results and all(result.ok for result in results.values()) else 1


def _one(name: str, directory: Path, tests: list[str], timeout_seconds: float) -> Result:
    try:
        kernel = fetch_kernel(RELEASES[name], directory)
        return run_tests(kernel, directory, ["-q", "--color=no", *tests], timeout_seconds)
    except (FetchError, OSError) as error:
        return Result(trouble=str(error))


def table(results: dict[str, Result]) -> str:
    """Kernels and counts, for each test file and in all; then what failed and why tests were
    skipped."""
    lines = ["", f"KERNEL  {'TESTS':28}  PASSED  FAILED  SKIPPED  BOOT s  ALL s"]
    for name, r in results.items():
        lines += [_row(name, file, counts) for file, counts in r.files]
        times = f"{r.boot_seconds:6.1f}  {r.seconds:5.0f}"
        lines.append(f"{_row(name, 'all', r.total)}  {times}  {r.trouble}".rstrip())
    for name, r in results.items():
        lines += [f"{name} failed: {failure}" for failure in r.failures]
        lines += [f"{name} skipped: {reason}" for reason in r.skips]
    return "\n".join(lines)


def _row(kernel: str, tests: str, counts: Counts) -> str:
    return (
        f"{kernel:6}  {tests:28}  {counts.passed:6}  {counts.failed:6}  {counts.skipped:7}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
