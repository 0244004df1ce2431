"""Where everything stands under a pin root. Pure: names in, paths out.

bpffs refuses a dot anywhere in a name and ends a name at 255 bytes, so whatever comes from outside
(a cgroup path, an interface name) is escaped, reversibly, the way systemd-escape does it.
"""

import functools
import hashlib
import re
import zlib

LinkKey = tuple[str, str, str]
"""Object, program and target, escaped: the names of a link's pin."""

StubKey = tuple[str, str]
"""Object and program, escaped: the names of a stub's directory."""

NAME_MAX = 255
PARTS_MAX = 4
"""Of the name of a map: it can stand in directories below the pin root, as those of tc do."""
NEVER_KEPT = "it is constant data, which is never kept: a new version brings its own"
OWN_DIRECTORY = "bpfkeeperd"
"""The keeper's own directory in the pin root; no map can have this name."""
RESERVED_NAMES = frozenset({OWN_DIRECTORY})

OBJECT_NAMESPACE = re.compile("tc/([0-9a-f]{40})/([^/]+)")
"""Where tc pins a map of one object's: the hash is that of the object's file."""

_PLAIN = re.compile(r"[A-Za-z0-9_:]+\Z")
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:")


@functools.lru_cache(maxsize=1 << 16)
def escape(text: str) -> str:
    r"""Makes any text a bpffs name: ``/`` becomes ``-``, all but ``[A-Za-z0-9_:]`` ``\xNN``.

    A result over 200 bytes is cut and ends in a hash of the whole, so that it stays one name.
    """
    if _PLAIN.match(text) and len(text) <= 200:
        return text
    escaped = "".join(
        "-" if byte == 0x2F else chr(byte) if byte in _SAFE else f"\\x{byte:02x}"
        for byte in text.encode("utf-8", "surrogateescape")
    )
    if len(escaped) > 200:
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{escaped[:160]}~{digest[:32]}"
    return escaped


def unescape(name: str) -> str:
    """The text that `escape` made a name of; a cut name comes back as it is."""
    if "~" in name or _PLAIN.match(name):
        return name
    out = re.sub(
        rb"\\x([0-9a-f]{2})",
        lambda match: bytes([int(match[1], 16)]),
        name.replace("-", "/").encode("ascii", "surrogateescape"),
    )
    return out.decode("utf-8", "surrogateescape")


def name_fault(name: str) -> str | None:
    """Why bpffs, or the keeper's own layout, refuses this map name; None when it is fine.

    A slash is between directories below the pin root and a name.
    """
    if not name:
        return "a name cannot be empty"
    if name.startswith((".rodata", ".kconfig")):
        return NEVER_KEPT
    if name.startswith((".data", ".bss")):
        return f"global data is kept under another name: write pin_maps: {{{name}: NAME}}"
    if "." in name:
        return "bpffs refuses a dot in a name"
    if "\0" in name:
        return "a name cannot hold a null byte"
    parts = name.split("/")
    if len(parts) > PARTS_MAX:
        return f"at most {PARTS_MAX - 1} directories can stand before a name"
    if not all(parts):
        return "a name cannot begin or end with a slash, or have two in a row"
    if any(len(part.encode("utf-8", "surrogateescape")) > NAME_MAX for part in parts):
        return f"bpffs takes names of at most {NAME_MAX} bytes"
    if parts[0] in RESERVED_NAMES:
        return "this name is the keeper's own directory in the pin root"
    return None


def array_name(object_name: str, elf_name: str) -> str:
    """The pin of a program array that is kept for an object's programs alone: without a user
    reference the kernel would empty it."""
    return f"{OWN_DIRECTORY}/arrays/{escape(object_name)}/{escape(elf_name)}"


def is_array_name(name: str) -> bool:
    return name.startswith(f"{OWN_DIRECTORY}/arrays/")


def kernel_name(object_name: str, elf_name: str) -> str:
    """What the kernel calls a map that libbpf made: its name cut to 15 characters. Global data is
    the section's name behind as much of the object's as there is room for."""
    if not elf_name.startswith("."):
        return elf_name[:15]
    room = max(0, 15 - max(7, len(elf_name)))
    return re.sub("[^A-Za-z0-9_.]", "_", object_name[:room] + elf_name)[:15]


def global_data_fault(elf_name: str) -> str | None:
    """Why a map of an object can be kept under no name at all; None where it can."""
    return NEVER_KEPT if elf_name.startswith((".rodata", ".kconfig")) else None


def filter_handle(key: LinkKey) -> int:
    """The handle of a program's filters of tc: another for each program, so that no two of them are
    at one place."""
    return zlib.crc32(f"{key[0]}/{key[1]}".encode()) or 1


class Layout:
    """The paths under one pin root."""

    __slots__ = (
        "arrays",
        "attached",
        "leftover",
        "links",
        "made",
        "objects",
        "own",
        "root",
        "staging",
        "stubs",
    )

    def __init__(self, root: str) -> None:
        self.root = root
        self.own = f"{root}/{OWN_DIRECTORY}"
        self.objects = f"{self.own}/objects"
        self.links = f"{self.own}/links"
        self.arrays = f"{self.own}/arrays"
        self.attached = f"{self.own}/attached"
        """For attachments without a link in the kernel: pins of the attached programs."""
        self.stubs = f"{self.own}/stubs"
        self.staging = f"{self.own}/staging"
        self.made = f"{self.own}/made"
        """Marks of the pins that the state file does not know yet: see `marks`."""
        self.leftover = f"{self.own}/leftover"

    def map(self, name: str) -> str:
        """Where a kept map is pinned: under its full name, as libbpf does, directories included."""
        return f"{self.root}/{name}"

    def staged_map(self, name: str) -> str:
        """Where a new map waits to take the name from another."""
        return f"{self.staging}/maps/{escape(name)}"

    def object(self, name: str) -> str:
        return f"{self.objects}/{escape(name)}"

    def programs(self, name: str, digest: str) -> str:
        """The directory of the loaded programs of one object file."""
        return f"{self.objects}/{escape(name)}/{digest}"

    def link_at(self, key: LinkKey) -> str:
        return f"{self.links}/{key[0]}/{key[1]}/{key[2]}"

    def attached_at(self, key: LinkKey) -> str:
        """The record of an attachment without a link."""
        return f"{self.attached}/{key[0]}/{key[1]}/{key[2]}"

    def stub_at(self, key: StubKey) -> str:
        """The directory of a program's stub: ``stub``, and ``slot``, the array it calls through."""
        return f"{self.stubs}/{key[0]}/{key[1]}"
