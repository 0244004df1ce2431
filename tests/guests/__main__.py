"""``python -m tests.guests``: test files on other kernels, and a table of how it went."""

import argparse
import sys

from tests.aptfetch import FetchError
from tests.guests.boot import CHECKOUT, Counts, Result, run_tests
from tests.guests.fetch import RELEASES, fetch_kernel

DIRECTORY = CHECKOUT / ".guests"
KERNELS = ("6.1", "6.12")
OPTIONS = {"lockdown": "lockdown=confidentiality"}
"""What a kernel's command line may get: ``6.12+lockdown``."""
TESTS = (
    *(
        f"tests/kernel/test_{name}.py"
        for name in (
            *("probes", "hooks", "trace_hooks", "net_hooks", "net_order", "sockmap", "stub"),
            *("struct_ops", "rollback_trace", "rollback_net", "adoption", "health", "pathwatch"),
            *("pins", "reload", "counting", "counting_scans", "counting_concurrent", "mapids"),
            *("instruments", "othermaps", "figures", "census", "churn", "status"),
            *("byid", "pinrights"),
        )
    ),
    *(f"tests/system/test_{name}.py" for name in ("scrape", "series")),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guests", description=__doc__)
    parser.add_argument(
        "--kernels",
        default=" ".join(KERNELS),
        help=f"of {', '.join(RELEASES)}, each may have {', '.join(f'+{name}' for name in OPTIONS)}",
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each guest")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what to give to pytest")
    arguments = parser.parse_args()
    kernels = arguments.kernels.replace(",", " ").split()
    for name in kernels:
        release, *options = name.split("+")
        if release not in RELEASES:
            parser.error(f"unknown kernel {release}: there are {', '.join(RELEASES)}")
        if unknown := [option for option in options if option not in OPTIONS]:
            parser.error(f"unknown option +{unknown[0]}: there are {', '.join(OPTIONS)}")
    results = {}
    for name in kernels:
        print(f"== Linux {name}", flush=True)
        results[name] = _one(name, [*arguments.tests], arguments.timeout)
    print(table(results))
    return 0 if results and all(result.ok for result in results.values()) else 1


def _one(name: str, tests: list[str], timeout_seconds: float) -> Result:
    release, *options = name.split("+")
    unpacked, directory = DIRECTORY / release, DIRECTORY / name
    try:
        for path in (unpacked, directory):
            path.mkdir(parents=True, exist_ok=True)
        kernel = fetch_kernel(RELEASES[release], unpacked)
        command_line = " ".join(OPTIONS[option] for option in options)
        arguments = ["-q", "--color=no", *tests]
        return run_tests(kernel, directory, arguments, timeout_seconds, command_line)
    except (FetchError, OSError) as error:
        return Result(trouble=str(error))


def table(results: dict[str, Result]) -> str:
    """Kernels and counts, for each test file and in all; then what failed and why tests were
    skipped."""
    lines = ["", f"{'KERNEL':13}  {'TESTS':28}  PASSED  FAILED  SKIPPED  BOOT s  ALL s"]
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
        f"{kernel:13}  {tests:28}  {counts.passed:6}  {counts.failed:6}  {counts.skipped:7}"
    ).rstrip()


if __name__ == "__main__":
    sys.exit(main())
