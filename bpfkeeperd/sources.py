"""Reads object files: the bytes that are hashed are the bytes that are loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from bpfkeeperd import kernel
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.entries import Manifest, ObjectEntry
from bpfkeeperd.errors import KeeperError, ObjectError
from bpfkeeperd.files import read_file
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
                found[name] = str(error)
        used = {source.sha256 for source in found.values() if isinstance(source, ObjectSource)}
        self.known = {sha256: spec for sha256, spec in self.known.items() if sha256 in used}
        return found, opened

    def _read(self, entry: ObjectEntry, opened: OpenObjects) -> ObjectSource:
        data = read_file(entry.file, SIZE_MAX)
        sha256 = hashlib.sha256(data).hexdigest()
        if entry.sha256 and entry.sha256 != sha256:
            raise ObjectError(
                f"{entry.file}: its SHA-256 is {sha256}, the manifest wants {entry.sha256}: put the"
                " right file there, or the new sum into the manifest"
            )
        spec = self.known.get(sha256)
        if spec is None:
            try:
                opened[entry.name] = kernel.open_object(data, entry.name)
            except ObjectError as error:
                raise ObjectError(f"{entry.file}: {error}", error.detail) from None
            spec = self.known[sha256] = opened[entry.name].spec
        return ObjectSource(data, sha256, spec)


def close_all(opened: Mapping[str, kernel.OpenObject]) -> None:
    for open_object in opened.values():
        open_object.close()
