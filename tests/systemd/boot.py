"""One guest: a systemd in a container over this machine's files, ended whatever happens in it."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import end_all_in

CHECKOUT = Path(__file__).resolve().parents[2]
UNIT = "bpfkeeperd-tests.service"
RESULTS = "/results"
"""Where a guest puts what came out."""
VARIABLE = "BPFKEEPERD_TESTS_GUEST"
"""Set in a guest: tests may do there as they like."""

TEST_UNIT = """\
[Unit]
Description=The tests of bpfkeeperd
SuccessAction=exit-force
FailureAction=exit-force

[Service]
Type=oneshot
WorkingDirectory=@CHECKOUT@
Environment=@VARIABLE@=1 PYTHONDONTWRITEBYTECODE=1 LANG=C.UTF-8 HOME=/root
ExecStart=/bin/sh @RESULTS@/run
ExecStopPost=-/bin/sh -c 'journalctl --no-pager --all -o short-precise > @RESULTS@/journal'
StandardOutput=file:@RESULTS@/output
StandardError=inherit
"""

RUN = """\
# What stands in a container's /sys is not all of it, is no sysfs, and is read-only, as /proc/sys is
# and stays, so that nobody sets up the machine. From here on all is as on a machine, but that those
# who see this /proc find another ID of the boot there.
mkdir /run/cgroup
mount --bind /sys/fs/cgroup /run/cgroup
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --bind /run/cgroup /sys/fs/cgroup
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
mount -t tracefs -o nosuid,nodev,noexec tracefs /sys/kernel/tracing
.venv/bin/python -m pytest -p no:cacheprovider --color=no --basetemp=/srv/tests @ARGUMENTS@
code=$?
echo $code > @RESULTS@/code
exit $code
"""

# In a mount namespace of its own, so that nothing is left to unmount; in cgroups of its own.
BOOT = """\
for cgroup in @CGROUPS@; do echo $$ > "$cgroup/cgroup.procs"; done
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
mkdir root
mount --bind / root
mount -o remount,bind,ro root
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec timeout --kill-after=5 @SECONDS@ systemd-nspawn --quiet --directory=root --volatile=overlay \\
    --machine=bpfkeeperd-tests --register=no --keep-unit --link-journal=no --private-network \\
    --capability=all --system-call-filter="bpf perf_event_open" --console=pipe \\
    --bind-ro=@CHECKOUT@ --bind=@DIRECTORY@:@RESULTS@ \\
    --bind-ro=@DIRECTORY@/@UNIT@:/etc/systemd/system/@UNIT@ \\
    --boot systemd.unit=@UNIT@
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a guest's pytest ended with; `trouble` when it came to no end of its own."""

    code: int
    seconds: float
    trouble: str = ""


def run_tests(
    directory: Path,
    packages: Mapping[str, Sequence[Path]],
    arguments: Sequence[str],
    timeout_seconds: float,
) -> Result:
    """Runs pytest in a guest; what it says is shown as it comes, and kept in ``output``; the
    guest's journal is in ``journal``.

    The directory is emptied first. The guest has packages in ``packages``, by name of a directory.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name, files in packages.items():
        (directory / "packages" / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, directory / "packages" / name)
    (directory / UNIT).write_text(_filled(TEST_UNIT))
    (directory / "run").write_text(_filled(RUN, ARGUMENTS=shlex.join(arguments)))
    (directory / "output").touch()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work, _own_cgroups() as cgroups:
        script = _filled(
            BOOT,
            DIRECTORY=str(directory),
            CGROUPS=shlex.join(map(str, cgroups)),
            SECONDS=f"{timeout_seconds:.0f}",
        )
        command = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script]
        with (directory / "console").open("wb") as console:
            guest = subprocess.Popen(
                command, cwd=work, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
            try:
                _show(directory / "output", guest)
            finally:
                _end(guest)
    seconds = time.monotonic() - started
    try:
        return Result(int((directory / "code").read_text()), seconds)
    except (OSError, ValueError):
        if guest.returncode in (124, 137):
            return Result(1, seconds, f"not done after {timeout_seconds:.0f} s")
        return Result(1, seconds, f"did not come to its end: see {directory}/console and journal")


def _filled(text: str, **more: str) -> str:
    known = {"CHECKOUT": str(CHECKOUT), "RESULTS": RESULTS, "UNIT": UNIT, "VARIABLE": VARIABLE}
    for name, value in (known | more).items():
        text = text.replace(f"@{name}@", value)
    return text


def _show(output: Path, guest: subprocess.Popen[bytes]) -> None:
    """Shows what a file gets for as long as the guest runs."""
    with output.open("rb") as file:
        while True:
            ended = guest.poll() is not None
            while piece := file.read(1 << 16):
                sys.stdout.write(piece.decode(errors="replace"))
                sys.stdout.flush()
            if ended:
                return
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and waits for it; a process that has ended already is fine."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _own_cgroups() -> Iterator[list[Path]]:
    """A new cgroup in each hierarchy in which the guest makes some: cgroup2, and systemd's own if
    there is one beside it. All that is in them ends with them."""
    made = []
    try:
        for parent in _cgroups_of_systemd():
            path = parent / f"bpfkeeperd-systemd-{os.getpid()}"
            path.mkdir()
            made.append(path)
        yield made
    finally:
        for path in made:
            _remove_cgroup(path)


def _cgroups_of_systemd() -> Iterator[Path]:
    """This process's cgroups in these hierarchies."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2" and "" in own:
            yield Path(f"{mount}{own.pop('')}")
        elif kind == "cgroup" and "name=systemd" in options.split(",") and "name=systemd" in own:
            yield Path(f"{mount}{own.pop('name=systemd')}")


def _remove_cgroup(path: Path) -> None:
    """With all below it, and whatever runs there."""
    deadline = time.monotonic() + 10
    while path.exists():
        for directory, _, _ in os.walk(path, topdown=False):
            end_all_in(Path(directory))
            with suppress(OSError):  # what was killed is on its way out
                os.rmdir(directory)
        if path.exists() and time.monotonic() > deadline:
            raise OSError(f"cannot remove {path}: something in it does not end")
        time.sleep(0.05)
