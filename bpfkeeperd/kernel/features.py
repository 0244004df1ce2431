"""What libbpf believes that the kernel can do.

It asks at the first load that wants to know, once in a process, and takes every failure for a no,
of which it says nothing: without memory or descriptors at that moment, maps are made without BTF
until the process ends. So all is asked before anything else is loaded, and looked at.
"""

import threading
from pathlib import Path

from bpfkeeperd._libbpf import ffi, lib
from bpfkeeperd.errors import LibbpfError, ObjectError, errno_text
from bpfkeeperd.verifier import btf_left_out, load_failure

_OBJECT = Path(__file__).parents[1] / "bpf" / "features.bpf.o"
_TURN = threading.Lock()
_known: list[str] = []
"""Empty until libbpf has asked; then what is wrong with what it believes, or ""."""


def learn_features() -> None:
    """Has libbpf ask the kernel what it can do; does nothing when it has.

    Raises:
        LibbpfError: it believes something wrong, and will as long as this process lives.
        ObjectError: it could not ask; it may another time.
    """
    with _TURN:
        if not _known:
            _known.append(_learn())
        if _known[0]:
            raise LibbpfError(
                "cannot load objects: libbpf could not ask the kernel what it can do, and does not"
                f" ask again ({_known[0]}): start bpfkeeperd again"
            )


def _learn() -> str:
    try:
        data = _OBJECT.read_bytes()
    except OSError as error:
        why = f"cannot read {_OBJECT}: {errno_text(error.errno or 0)}"
        raise ObjectError(f"{why}: install bpfkeeperd again, its files are not complete") from error
    missing = ffi.new("char **")
    lib.keeper_log_clear()
    result = lib.keeper_learn_features(data, len(data), missing)
    log = bytes(ffi.string(lib.keeper_log())).decode("utf-8", "replace")
    if result < 0:
        why = load_failure(log, errno_text(-result))
        if missing[0] == ffi.NULL or "probe_loading()" in log:  # nothing was asked yet
            raise ObjectError(f"features.bpf.o of bpfkeeperd's own: {why}", log)
        return why
    if missing[0] == ffi.NULL:
        return ""
    if left_out := btf_left_out(log):
        raise ObjectError(left_out, log)
    lacking: str = ffi.string(missing[0]).decode()
    return f"it takes this kernel to be without {lacking}"
