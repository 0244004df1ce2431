"""Which words a message must have of the call that failed."""

import errno
import os

from tests.errno.shim import Call

_VERBS = {
    "MAP_CREATE": ("create map", "make a stub"),
    "MAP_LOOKUP_ELEM": ("look up", "read"),
    "MAP_UPDATE_ELEM": ("update", "setting initial", "initialize slot", "write", "fill", "carry"),
    "MAP_DELETE_ELEM": ("delete",),
    "MAP_GET_NEXT_KEY": ("read a map's next key", "read"),
    "MAP_LOOKUP_BATCH": ("read",),
    "MAP_FREEZE": ("freezing", "freeze"),
    "PROG_LOAD": ("load", "refuses program", "make a stub"),
    "PROG_QUERY": ("ask", "see", "look"),
    "OBJ_PIN": ("pin",),
    "OBJ_GET": ("open the pin", "read the pin"),
    "OBJ_GET_INFO_BY_FD": ("info", "list the links", "read the pin", "kept map", "look"),
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
    "chmod": ("give",),
    "fchmodat": ("give",),
    "lchown": ("give",),
    "utimensat": ("note",),
    "stat64": ("look",),
    "lstat64": ("look",),
    "fstatat64": ("look",),
    "statfs64": ("bpffs", "look"),
    "fstatfs64": ("bpffs", "look"),
    "open": ("open",),
    "openat": ("open",),
    "opendir": ("read",),
    "getdents": ("read",),
    "flock": ("lock",),
}
_WITH_SUBJECT = {"MAP_CREATE", "PROG_LOAD", "OBJ_PIN", "OBJ_GET"}


def faults(call: Call, number: int, text: str) -> list[str]:
    """What a message lacks that should name a call."""
    missing = []
    verbs = _VERBS.get(call.name)
    if verbs is None:
        return [f"no words are set down for {call.name}"]
    if not any(verb in text for verb in verbs):
        missing.append(f"no verb of {call.name}")
    subject = call.subject
    bpf = call.name.isupper()
    if subject and (not bpf or call.name in _WITH_SUBJECT) and not _names(call, subject, text):
        missing.append(f"not what it was done to: {subject}")
    if errno.errorcode[number] not in text and os.strerror(number) not in text:
        missing.append(f"not {errno.errorcode[number]}")
    return missing


def _names(call: Call, subject: str, text: str) -> bool:
    if call.name in ("MAP_CREATE", "PROG_LOAD"):
        # The kernel's names are of 15 characters, and of a stub's parts no reader has heard.
        return subject.removeprefix("stub_").removeprefix("slot_") in text or not subject
    return subject in text
