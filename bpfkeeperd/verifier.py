"""What libbpf and the verifier say of a failed load, brought down to the line that tells."""

import errno
import re

from bpfkeeperd.errors import PASSING, errno_text

_BEGIN = re.compile(r"^libbpf: prog '(?P<program>[^']*)': -- BEGIN PROG LOAD LOG --$", re.M)
_END = "-- END PROG LOAD LOG --"
_REFUSED = re.compile(
    r"^libbpf: prog '(?P<program>[^']*)': BPF program load failed: (?P<why>.*)$", re.M
)
_NOT_CREATED = re.compile(
    r"^libbpf: map '(?P<map>[^']*)': failed to create: .*\(-(?P<errno>\d+)\)$", re.M
)
_NOT_FILLED = re.compile(
    r"^libbpf: (?:map '(?P<named>[^']*)': failed to freeze as read-only|"
    r"Error setting initial map\((?P<initial>[^)]*)\) contents|"
    r"Error freezing map\((?P<frozen>[^)]*)\) as read-only|"
    r"map '(?P<slot>[^']*)': failed to initialize slot).*",
    re.M,
)
"""libbpf says after it that the map could not be created."""
_NO_BTF = re.compile(
    r"^libbpf: (?:Error loading \.BTF into kernel: -(?P<number>\d+)|"
    r"Error in bpf_create_map_xattr\((?P<map>[^)]*)\):.*\(-(?P<of_map>\d+)\)\. Retrying without)",
    re.M,
)
"""libbpf goes on without BTF after any error."""
_NUMBER = re.compile(r": -(\d+)(?=$|\. )")
_NOISE = re.compile(
    r"processed \d+ insns|verification time|stack depth|peak_states|"
    r"failed to load object|failed to load program|BPF program load failed|"
    r"max_states_per_insn|mark_precise:|arg#\d+ reference type|^(cur|old) state:"
)
_NO_RIGHT = re.compile(r"probe_loading\(\):Operation not permitted")
"""What libbpf says of it is about kernels and limits."""
_SOURCE_LINE = re.compile(r"^; ")


def refused_map(log: str) -> tuple[str, int] | None:
    """The map that the kernel did not create, and the errno; None when it was something else."""
    found = None if _NOT_FILLED.search(log) else _NOT_CREATED.search(log)
    return (found["map"], int(found["errno"])) if found else None


def btf_left_out(log: str) -> str:
    """Why the maps and programs of an object have no BTF although it may have been taken another
    time; empty when that is not so."""
    for found in _NO_BTF.finditer(log):
        number = int(found["number"] or found["of_map"])
        if number in PASSING | {errno.EPERM}:
            what = f"create map {found['map']}" if found["map"] else "load its BTF into the kernel"
            return f"cannot {what}: {errno_text(number)}"
    return ""


def load_failure(log: str, fallback: str) -> str:
    """One line for a failed load: the program and the verifier's telling line, or libbpf's.

    The telling line is the last one that is neither a source line nor statistics; how many lines
    stand before it is said, so that nobody thinks it was all.
    """
    refused = _REFUSED.search(log)
    begin = _BEGIN.search(log)
    if begin:
        lines = [line for line in log[begin.end() :].split(_END)[0].splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("libbpf: ")]
        telling = [line for line in lines if not _NOISE.search(line)]
        telling = [line for line in telling if not _SOURCE_LINE.match(line)] or telling
        if telling:
            last = telling[-1].strip()
            omitted = len(lines) - 1
            more = (
                f" ({omitted} more lines of the verifier's log: -v shows them)" if omitted else ""
            )
            return f"the verifier refuses program {begin['program']}: {last}{more}"
    if refused:
        return f"the kernel refuses program {refused['program']}: {refused['why']}"
    complaints = [
        line.removeprefix("libbpf: ")
        for line in log.splitlines()
        if line.startswith("libbpf: ") and not _NOISE.search(line)
    ]
    if complaints and _NO_RIGHT.search(complaints[0]):
        return "cannot load: Operation not permitted (EPERM): it takes root"
    complaint = complaints[0] if complaints else fallback
    # libbpf tells some by their number alone.
    complaint = _NUMBER.sub(lambda found: f": {errno_text(int(found[1]))}", complaint)
    return f"cannot load: {complaint}"
