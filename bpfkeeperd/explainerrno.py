"""What an errno of bpf(2) means, by what was asked for. Pure."""

import errno
from collections.abc import Mapping
from enum import StrEnum

from bpfkeeperd.errors import ENOTSUPP, KeeperError, errno_text
from bpfkeeperd.suggest import did_you_mean


class Place(StrEnum):
    """What was asked of the kernel."""

    MAP_CREATE = "map-create"
    MAP_UPDATE = "map-update"
    PROG_LOAD = "prog-load"
    LINK_CREATE = "link-create"
    LINK_UPDATE = "link-update"
    OBJ_PIN = "obj-pin"
    OBJ_GET = "obj-get"


_PIN_NAME = "a dot in a name is refused by bpffs, also when nothing is there: choose another name"

MEANINGS: Mapping[Place, Mapping[int, str]] = {
    Place.MAP_CREATE: {
        errno.EINVAL: "a size, max_entries, flag or map_extra is not what the type takes, BTF does"
        " not fit, or this kernel does not have the type or flag: see explain map-type",
        errno.E2BIG: "key, value or max_entries are larger than the type takes, or fields are set"
        " that this kernel does not know: make it smaller",
        errno.EPERM: "CAP_BPF is missing (CAP_NET_ADMIN too for maps of sockets and interfaces,"
        " CAP_SYS_ADMIN for zero_seed); up to Linux 6.4 also in the place of EINVAL; before 5.11"
        " RLIMIT_MEMLOCK: raise it",
        errno.ENOMEM: "what the map takes at once is not free, or not to this cgroup: fewer"
        " max_entries, or no_prealloc",
        errno.EBADF: "the descriptor of BTF or of the inner map is none",
        errno.ERANGE: "an arena from its map_extra on crosses a border of 4 GiB: leave it out",
        ENOTSUPP: "an LRU map with no_prealloc, an inner map of a type that cannot be one, or BTF"
        " for a type that takes none: create it without BTF",
    },
    Place.MAP_UPDATE: {
        errno.E2BIG: "the map is full, or the index is not below max_entries: raise max_entries, or"
        " delete entries",
        errno.EEXIST: "BPF_NOEXIST, and the key is there; slots of an array always are",
        errno.ENOENT: "BPF_EXIST, and the key is not there",
        errno.EPERM: "the map is frozen, or the descriptor is for reading only",
        errno.EINVAL: "a value the map cannot hold: an inner map unlike the pattern, a program of"
        " another kind in a program array, a prefix longer than the key, unknown flags",
        errno.EBADF: "the value has to be an open descriptor of a map, program, socket or cgroup:"
        " this is none, or of something else",
        errno.EBUSY: "a program uses the key at this moment, or the socket is in such a map: try"
        " again, or delete it there first",
        errno.ENOMEM: "no memory for the entry, or not to this cgroup; with no_prealloc also when"
        " entries are made in a hurry: try again",
        errno.EOPNOTSUPP: "user space cannot write to this type, or the socket is of a kind or in a"
        " state that it does not take",
        ENOTSUPP: "user space cannot write to this type of map: programs fill it",
    },
    Place.PROG_LOAD: {
        errno.EACCES: "the verifier refuses the program: the last lines of its log say why",
        errno.EINVAL: "the verifier refuses it, or type, attach type, license or a helper does not"
        " fit: see the log",
        errno.EPERM: "CAP_BPF is missing, or CAP_PERFMON or CAP_NET_ADMIN for the type; before 5.11"
        " RLIMIT_MEMLOCK: raise it",
        errno.E2BIG: "the program has too many instructions, or takes the verifier more than a"
        " million of them: split it, bound its loops",
        errno.ENOSPC: "the verifier's log is longer than the buffer; the verdict is another errno",
        errno.ENOENT: "a kernel function, type or attach target that the program names is not in"
        " this kernel",
        errno.ESRCH: "a kernel function or its BTF that the program names is not in this kernel",
        errno.EBADF: "the descriptor of a map, BTF or attach target is none",
        errno.ENOMEM: "no memory for the program or the verifier's state",
        ENOTSUPP: "the JIT cannot compile it: an instruction, or a call it does not know",
    },
    Place.LINK_CREATE: {
        errno.EINVAL: "program and attach type do not fit, or this kernel has no link of the kind"
        " (TCX from 6.6)",
        errno.EBUSY: "XDP: another program or mode is there already: take it away",
        errno.EEXIST: "the program is attached there already, or an older attachment without a link"
        " is in the way: take it away",
        errno.EPERM: "CAP_NET_ADMIN or CAP_PERFMON is missing, or a program of an upper cgroup is"
        " attached without BPF_F_ALLOW_MULTI",
        errno.ENODEV: "there is no interface of that index in this network namespace",
        errno.EBADF: "the target's descriptor is none, or no cgroup v2 directory",
        errno.E2BIG: "the cgroup or interface has as many programs as it takes (64): detach some",
        errno.ERANGE: "the interface has as many TCX programs as it takes (64): detach some",
        errno.EOPNOTSUPP: "the driver has no native XDP, or not with this MTU or set-up: write"
        " mode: generic",
        errno.ENOENT: "the program or place that the new one is to stand beside is not there",
    },
    Place.LINK_UPDATE: {
        errno.EPERM: "the link runs another program than expected, somebody changed it meanwhile:"
        " reload",
        errno.ENOLINK: "the target is gone, and the link with it: attach again",
        errno.EINVAL: "the new program is of another type than the old one, or the kind of link has"
        " no update (freplace, kprobe): attach again",
        errno.EOPNOTSUPP: "this kind of link has no update (netfilter): attach again",
        errno.EEXIST: "the program is attached there by another link already",
        errno.EBADF: "a descriptor is none, or not of a link or program",
    },
    Place.OBJ_PIN: {
        errno.EEXIST: "something is pinned there already: nothing is replaced",
        errno.ENOENT: "the directory is not there: make it",
        errno.EPERM: f"the directory is not on a bpffs (mount one), or {_PIN_NAME}",
        errno.EACCES: "no right to write to the directory",
        errno.EINVAL: "the descriptor is of nothing that can be pinned, or the path is not on a"
        " bpffs",
        errno.ENAMETOOLONG: "names have at most 255 bytes",
        errno.EXDEV: "each bpffs mount is a file system of its own: rename within one only",
    },
    Place.OBJ_GET: {
        errno.ENOENT: "nothing is pinned there",
        errno.EPERM: f"{_PIN_NAME}; or CAP_BPF is missing",
        errno.EACCES: "no right to the pin or its directories (pins are made 0600: chmod), or the"
        " path is not on a bpffs",
        errno.EINVAL: "what is pinned there cannot be opened with these flags",
        errno.ENOTDIR: "a part of the path is no directory",
    },
}


def errno_text_at(name: str, place: str | None = None) -> str:
    """What an errno, by name or number, means: at one place, or wherever it is known.

    Raises:
        KeeperError: there is no such errno or place.
    """
    number = _number(name)
    if place is not None and place not in list(Place):
        raise KeeperError(f"there is no place {place}: {did_you_mean(place, list(Place))}")
    places = [Place(place)] if place else list(Place)
    known = [(at, MEANINGS[at][number]) for at in places if number in MEANINGS[at]]
    lines = [f"{at}: {text}" for at, text in known]
    return "\n".join([errno_text(number), *(lines or [_unknown(number, place)])])


def _unknown(number: int, place: str | None) -> str:
    elsewhere = [str(at) for at in Place if number in MEANINGS[at]]
    text = f"nothing particular is known of it at {place or 'any place'}"
    return f"{text}; it is known at {', '.join(elsewhere)}" if elsewhere else text


def _number(name: str) -> int:
    numbers = {text: number for number, text in errno.errorcode.items()} | {"ENOTSUPP": ENOTSUPP}
    digits = name.removeprefix("-")
    if digits.isdecimal() and digits.isascii() and len(digits) <= 4:
        number = int(digits)
        if number in numbers.values():
            return number
    if name.upper() in numbers:
        return numbers[name.upper()]
    raise KeeperError(f"there is no errno {name}: {did_you_mean(name.upper(), numbers)}")
