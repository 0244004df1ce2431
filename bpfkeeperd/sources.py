"""Reads object files: the bytes that are hashed are the bytes that are loaded."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.entries import Manifest, ObjectEntry
from bpfkeeperd.errors import KeeperError, ObjectError
from bpfkeeperd.load import OpenObjects
from bpfkeeperd.state import ObjectSpec

SIZE_MAX = 64 << 20
"""Bytes; an object file with all its debug information is a few megabytes."""


@dataclass(slots=True)
class Sources:
    """The object files of a manifest as they are now."""

    known: dict[str, ObjectSpec] = field(default_factory=dict)
    """By SHA-256: a file that did not change is not opened again."""

    def read(self, manifest: Manifest) -> tuple[dict[str, ObjectSource | str], OpenObjects]:
        """Each object's file, or why it cannot be used; and the new ones, open.

        The caller closes what it does not use of the open ones.
        """
        found: dict[str, ObjectSource | str] = {}
        opened: OpenObjects = {}
        for name, entry in manifest.objects.items():
            try:
                found[name] = self._read(entry, opened)
            except KeeperError as error:
                found[name] = f"{entry.file}: {error}"
        used = {source.sha256 for source in found.values() if isinstance(source, ObjectSource)}
        self.known = {sha256: spec for sha256, spec in self.known.items() if sha256 in used}
        return found, opened

    def _read(self, entry: ObjectEntry, opened: OpenObjects) -> ObjectSource:
        data = read_file(entry.file)
        sha256 = hashlib.sha256(data).hexdigest()
        if entry.sha256 and entry.sha256 != sha256:
            raise ObjectError(
                f"its SHA-256 is {sha256}, the manifest wants {entry.sha256}: put the right file"
                " there, or the new sum into the manifest"
            )
        spec = self.known.get(sha256)
        if spec is None:
            opened[entry.name] = kernel.open_object(data, entry.name)
            spec = self.known[sha256] = opened[entry.name].spec
        return ObjectSource(data, sha256, spec)


def close_all(opened: Mapping[str, kernel.OpenObject]) -> None:
    for open_object in opened.values():
        open_object.close()


def read_file(path: str) -> bytes:
    """A regular file, whole."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectError("not a regular file")
        if status.st_size > SIZE_MAX:
            raise ObjectError(f"{status.st_size} bytes are more than the {SIZE_MAX} allowed")
        data = os.read(fd, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(fd, status.st_size)):
            data += more
        return data
    except OSError as error:
        raise ObjectError(f"cannot read it: {error.strerror}") from None
    finally:
        if fd >= 0:
            os.close(fd)
