"""Which words a message must have of the call that failed."""

import errno
import os

from tests.errno.shim import Call

_VERBS = {
    "MAP_CREATE": ("create map", "make a stub"),
    "MAP_LOOKUP_ELEM": ("look up", "read the slots", "read"),
    "MAP_UPDATE_ELEM": (
        "update",
        "make a stub",
        "setting initial",
        "initialize slot",
        "write",
        "fill",
        "carry",
    ),
    "MAP_DELETE_ELEM": ("delete",),
    "MAP_GET_NEXT_KEY": ("read a map's next key", "read"),
    "MAP_LOOKUP_BATCH": ("read",),
    "MAP_FREEZE": ("freezing", "freeze"),
    "PROG_LOAD": ("load", "refuses program", "make a stub"),
    "PROG_QUERY": ("ask", "see", "look"),
    "OBJ_PIN": ("pin",),
    "OBJ_GET": ("open the pin", "read the pin"),
    "OBJ_GET_INFO_BY_FD": (
        "open the pin",
        "attach",
        "read the BTF",
        "info",
        "swap",
        "make a stub",
        "slots",
        "list the links",
        "read the pin",
        "kept map",
        "look",
    ),
    "PROG_GET_FD_BY_ID": ("open the program", "open program"),
    "MAP_GET_FD_BY_ID": ("open the map",),
    "LINK_GET_FD_BY_ID": ("open the link", "list the links"),
    "LINK_GET_NEXT_ID": ("list the links",),
    "BTF_GET_FD_BY_ID": ("BTF",),
    "BTF_LOAD": ("BTF",),
    "LINK_CREATE": ("attach",),
    "LINK_UPDATE": ("swap",),
    "LINK_DETACH": ("detach",),
    "RAW_TRACEPOINT_OPEN": ("attach",),
    "mkdir": ("make directory", "make pin root"),
    "rmdir": ("remove",),
    "unlink": ("remove",),
    "rename": ("rename",),
    "renameat2": ("rename",),
    "link": ("link",),
    "linkat": ("link",),
    "chmod": ("give", "set owner"),
    "fchmodat": ("give", "set owner"),
    "chown": ("give", "set owner"),
    "lchown": ("give", "set owner"),
    "utimensat": ("note",),
    "stat64": ("look",),
    "lstat64": ("look",),
    "fstatat64": ("look",),
    "statfs64": ("bpffs", "look"),
    "fstat64": ("look", "open", "set owner"),
    "fstatfs64": ("bpffs", "look"),
    "open": ("open", "set owner", "look"),
    "openat": ("open",),
    "mkdirat": ("make directory",),
    "unlinkat": ("remove",),
    "renameat": ("rename",),
    "opendir": ("read",),
    "getdents": ("read",),
    "flock": ("lock",),
}
SPENT = "start bpfkeeperd again"
"""What it says when libbpf could not ask the kernel what it asks once in a process."""
_WITH_SUBJECT = {"MAP_CREATE", "PROG_LOAD", "OBJ_PIN", "OBJ_GET"}


def faults(call: Call, number: int, text: str) -> list[str]:
    """What a message lacks that should name a call."""
    missing = []
    if call.name.isupper() and "features.bpf.o" in text:  # of its parts no reader has heard
        call = Call("PROG_LOAD", "", failed=True)
    verbs = _VERBS.get(call.name)
    if verbs is None:
        return [f"no words are set down for {call.name}"]
    if not any(verb in text for verb in verbs):
        missing.append(f"the message has no verb of {call.name}")
    subject = "" if call.subject.startswith("/proc/self/fd/") else call.subject
    subject = subject.removesuffix("/.")  # a directory itself, of an open one
    bpf = call.name.isupper()
    if subject and (not bpf or call.name in _WITH_SUBJECT) and not _names(call, subject, text):
        missing.append(f"the message does not say what it was done to: {subject}")
    if errno.errorcode[number] not in text and os.strerror(number) not in text:
        missing.append(f"the message has not {errno.errorcode[number]}")
    return missing


def _names(call: Call, subject: str, text: str) -> bool:
    if call.name in ("MAP_CREATE", "PROG_LOAD"):
        # The kernel's names are of 15 characters, and of a stub's parts no reader has heard.
        return subject.removeprefix("stub_").removeprefix("slot_") in text or not subject
    return subject in text
