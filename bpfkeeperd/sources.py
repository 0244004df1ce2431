"""Reads object files: the bytes that are hashed are the bytes that are loaded."""

import hashlib
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bpfkeeperd import kernel
from bpfkeeperd.desired import ObjectSource
from bpfkeeperd.entries import Manifest, ObjectEntry
from bpfkeeperd.errors import KeeperError, ObjectError
from bpfkeeperd.hooks import Hook, HookKind
from bpfkeeperd.resolveattach import attached_hooks
from bpfkeeperd.state import ObjectSpec
from bpfkeeperd.trust import NOBODY_ELSE, Files, Trust

SIZE_MAX = 64 << 20
"""Bytes; an object file with all its debug information is a few megabytes."""

Specs = dict[str, ObjectSpec]
"""By SHA-256: a file that did not change is not opened again."""


@dataclass(slots=True)
class Sources:
    """The object files of a manifest as they are now, for one reload.

    A context manager that closes what was opened; the bytes go with it.
    """

    found: dict[str, ObjectSource | str] = field(default_factory=dict)
    """By object: what its file declares, or why it cannot be used."""
    data: dict[str, bytes] = field(default_factory=dict)
    _opened: dict[str, kernel.OpenObject] = field(default_factory=dict)

    def open(self, name: str) -> kernel.OpenObject:
        """An object ready to be given its maps and loaded; the caller closes it.

        Raises:
            ObjectError: libbpf does not take the file.
        """
        opened = self._opened.pop(name, None)
        return opened or kernel.open_object(self.data[name], name)

    def read(self, entry: ObjectEntry, specs: Specs, files: Files) -> ObjectSource:
        """Reads one file, and opens it when its content is new.

        Raises:
            KeeperError: it cannot be used.
        """
        data = files.read(entry.file, SIZE_MAX)
        sha256 = hashlib.sha256(data).hexdigest()
        if entry.sha256 and entry.sha256 != sha256:
            raise ObjectError(
                f"{entry.file}: its SHA-256 is {sha256}, the manifest wants {entry.sha256}: put the"
                " right file there, or the new sum into the manifest"
            )
        if sha256 not in specs:
            try:
                opened = kernel.open_object(data, entry.name)
            except ObjectError as error:
                raise ObjectError(f"{entry.file}: {error}", error.detail) from None
            self._opened[entry.name] = opened
            specs[sha256] = opened.spec
        self.data[entry.name] = data
        return ObjectSource(sha256, specs[sha256])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in self._opened.values():
            opened.close()


def read_sources(manifest: Manifest, specs: Specs, trust: Trust = NOBODY_ELSE) -> Sources:
    """Reads every object file; those that ``specs`` does not know are opened, and put there."""
    sources = Sources()
    with Files(trust) as files:
        for name, entry in manifest.objects.items():
            try:
                sources.found[name] = sources.read(entry, specs, files)
            except KeeperError as error:
                sources.found[name] = str(error)
    used = {source.sha256 for source in sources.found.values() if not isinstance(source, str)}
    for sha256 in specs.keys() - used:
        del specs[sha256]
    return sources


def lacking_hooks(manifest: Manifest, sources: Sources) -> dict[Hook, str]:
    """The hooks of programs to be attached that this kernel certainly does not have, and why.

    TCX is not among them: without it, programs become filters of tc.
    """
    found = {}
    for name, source in sources.found.items():
        if isinstance(source, ObjectSource):
            for hook in attached_hooks(manifest.objects[name], source.spec).values():
                if hook.kind is not HookKind.TCX and (why := kernel.lacks(hook)):
                    found[hook] = why
    return found
