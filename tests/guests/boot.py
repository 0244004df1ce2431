"""One guest: booted, given test files to run, and ended, whatever happens in it."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.guests.fetch import Kernel
from tests.guests.image import make_initramfs

CHECKOUT = Path(__file__).resolve().parents[2]
MEMORY_MIB = 2048
CPU = "max,-cx16"
"""qemu 7.2 leaves an operand of a cmpxchg16b in the flags register, and kernels from 6.4 on, whose
allocator uses that instruction, then fault anywhere. They do without where there is none."""
ACCELERATOR = "tcg,thread=single"
"""With a thread for each CPU, one now and then runs into an int3 that another has just put there
and taken away, as kernels do when they patch themselves: at boot, for each fentry or kprobe."""
VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")

SCRIPT = """\
# Process 1 of a guest: the places that tests need, the tests, and the end.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 TMPDIR=/run/tests
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
mount -t tmpfs tmpfs /run
mkdir /run/tests /run/netns
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/self/fd /dev/fd
ip link set lo up
cd @CHECKOUT@
.venv/bin/python -m pytest -p no:cacheprovider --junit-xml=/run/result.xml @ARGUMENTS@
stty -F /dev/ttyS1 raw
cat /run/result.xml > /dev/ttyS1
sync
busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What the tests said on one kernel; `trouble` when the guest came to no end of its own."""

    files: tuple[tuple[str, Counts], ...] = ()
    """For each test file, in the order in which they ran."""
    boot_seconds: float = 0.0
    seconds: float = 0.0
    trouble: str = ""
    failures: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()

    @property
    def total(self) -> Counts:
        each = [counts for _, counts in self.files]
        return Counts(
            sum(counts.passed for counts in each),
            sum(counts.failed for counts in each),
            sum(counts.skipped for counts in each),
        )

    @property
    def ok(self) -> bool:
        return not self.trouble and not self.total.failed and self.total.passed > 0


def run_tests(
    kernel: Kernel,
    directory: Path,
    arguments: list[str],
    timeout_seconds: float,
    command_line: str = "",
) -> Result:
    """Runs pytest in a guest; what it says is shown as it comes, and kept in `console.log`.

    ``command_line`` is what the kernel's gets besides.
    """
    script = directory / "run"
    text = SCRIPT.replace("@CHECKOUT@", shlex.quote(str(CHECKOUT)))
    script.write_text(text.replace("@ARGUMENTS@", shlex.join(arguments)))
    image = make_initramfs(kernel, script, directory)
    console, report = directory / "console.log", directory / "result.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as sockets, _shared_root(Path(sockets)) as socket:
        command = _qemu(kernel, image, socket, report, command_line)
        trouble = _watched(command, console, timeout_seconds)
    return _result(console, report, time.monotonic() - started, trouble)


@contextmanager
def _shared_root(directory: Path) -> Iterator[Path]:
    """A virtiofs daemon that shares this machine's files, which it cannot write itself."""
    program = next((path for path in VIRTIOFSD if os.path.exists(path)), None)
    if program is None:
        raise FileNotFoundError(f"cannot find virtiofsd: looked at {', '.join(VIRTIOFSD)}")
    root, socket = directory / "root", directory / "virtiofs"
    root.mkdir()
    # In a mount namespace of its own, so that nothing is left to unmount. The checkout may be on
    # a file system of its own, which a bind mount of / does not show.
    mounts = [
        f"mount --bind / {root}",
        f"mount -o remount,bind,ro {root}",
        f"mount --bind {shlex.quote(str(CHECKOUT))} {root}{shlex.quote(str(CHECKOUT))}",
        f"mount -o remount,bind,ro {root}{shlex.quote(str(CHECKOUT))}",
        f"exec {program} --socket-path={socket} -o source={root} -o cache=always",
    ]
    command = ["unshare", "--mount", "--propagation=slave", "sh", "-ec", "\n".join(mounts)]
    with ExitStack() as stack:
        log = stack.enter_context((directory / "virtiofsd.log").open("wb+"))
        server = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(_end, server)
        deadline = time.monotonic() + 10
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise OSError(f"cannot start virtiofsd: {log.read().decode()}")
            time.sleep(0.05)
        yield socket


def _qemu(kernel: Kernel, image: Path, socket: Path, report: Path, command_line: str) -> list[str]:
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-accel", ACCELERATOR, "-cpu", CPU, "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
        *("-numa", "node,memdev=memory"),
        *("-chardev", f"socket,id=files,path={socket}"),
        *("-device", "vhost-user-fs-pci,chardev=files,tag=host"),
        *("-kernel", str(kernel.image), "-initrd", str(image)),
        *("-append", f"console=ttyS0 quiet panic=-1 {command_line}".rstrip()),
        *("-serial", "stdio", "-serial", f"file:{report}"),
    ]


def _watched(command: list[str], console: Path, timeout_seconds: float) -> str:
    """Runs a guest to its end, or ends it; what went wrong, or nothing."""
    with console.open("wb") as log:
        guest = subprocess.Popen(
            ["timeout", "--kill-after=5", f"{timeout_seconds:.0f}", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        try:
            assert guest.stdout
            # As it comes: a line of dots can take minutes.
            while piece := os.read(guest.stdout.fileno(), 4096):
                log.write(piece)
                sys.stdout.write(piece.decode(errors="replace").replace("\r", ""))
                sys.stdout.flush()
        finally:
            _end(guest)
    match guest.returncode:
        case 0:
            return ""
        case 124 | 137:
            return f"not done after {timeout_seconds:.0f} s"
        case code:
            return f"qemu ended with {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and waits for it; a process that has ended already is fine."""
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(10)


def _result(console: Path, report: Path, seconds: float, trouble: str) -> Result:
    boot_seconds = 0.0
    for line in console.read_text(errors="replace").splitlines():
        if line.startswith("guest: up after "):
            boot_seconds = float(line.split()[3])
    if not trouble and not boot_seconds:
        trouble = f"did not boot: see {console}"
    try:
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        trouble = trouble or f"no result came back: see {console}"
        return Result(boot_seconds=boot_seconds, seconds=seconds, trouble=trouble)
    failed = [case for case in cases if _has(case, "failure") or _has(case, "error")]
    skipped = [case for case in cases if _has(case, "skipped") and case not in failed]
    return Result(
        files=tuple(_by_file(cases, failed, skipped)),
        boot_seconds=boot_seconds,
        seconds=seconds,
        trouble=trouble,
        failures=tuple(map(_case_name, failed)),
        skips=tuple(sorted({_skip_reason(case) for case in skipped})),
    )


def _by_file(
    cases: list[ElementTree.Element],
    failed: list[ElementTree.Element],
    skipped: list[ElementTree.Element],
) -> Iterator[tuple[str, Counts]]:
    everything, bad, left_out = (
        Counter(case.get("classname", "").rpartition(".")[2] for case in some)
        for some in (cases, failed, skipped)
    )
    for name, number in everything.items():
        counts = Counts(number - bad[name] - left_out[name], bad[name], left_out[name])
        yield name, counts


def _has(case: ElementTree.Element, tag: str) -> bool:
    return case.find(tag) is not None


def _case_name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}::{case.get('name')}"


def _skip_reason(case: ElementTree.Element) -> str:
    skipped = case.find("skipped")
    return (skipped.get("message") or "") if skipped is not None else ""
