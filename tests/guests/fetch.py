"""Kernels of other Debian releases, from the mirror this machine itself uses."""

from dataclasses import dataclass
from pathlib import Path

from tests.aptfetch import FetchError, apt_options, download, run, unpack

PACKAGE = "linux-image-cloud-amd64"
"""Depends on the newest kernel of its release."""


@dataclass(frozen=True, slots=True)
class Release:
    version: str
    suite: str


RELEASES = {
    release.version: release
    for release in (
        Release("5.10", "bullseye"),
        Release("6.1", "bookworm"),
        Release("6.12", "trixie"),
    )
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path


def fetch_kernel(release: Release, directory: Path) -> Kernel:
    """Downloads and unpacks a kernel; one that is there already is taken as it is.

    Raises:
        FetchError: no mirror, no such suite there, or no network.
    """
    unpacked = directory / "unpacked"
    if not unpacked.exists():
        unpack(_download(release, directory), unpacked)
    (image,) = unpacked.glob("boot/vmlinuz-*")
    # Releases from trixie on have no /lib of its own, but packages may still ship either.
    (modules,) = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
    return Kernel(image, modules)


def _download(release: Release, directory: Path) -> Path:
    options = apt_options(directory, f"deb {_mirror()} {release.suite} main")
    run(["apt-get", *options, "-qq", "update"], directory)
    depends = run(["apt-cache", *options, "depends", PACKAGE], directory)
    names = [line.split()[-1] for line in depends.splitlines() if " Depends: " in line]
    kernels = [name for name in names if name.startswith(f"linux-image-{release.version}.")]
    if not kernels:
        raise FetchError(f"cannot find Linux {release.version} in {release.suite}: {names}")
    return download(kernels[0], options, directory)


def _mirror() -> str:
    """The archive of this machine's sources, with the key they give for it, as in a source line."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SIGNED_BY)"
    command = ["apt-get", "indextargets", "--format", fields, "Identifier: Packages"]
    known = run(command, Path("/"))
    for line in known.splitlines():
        origin, label, uri, key = line.split("|")
        if (origin, label) == ("Debian", "Debian"):
            return f"[signed-by={key}] {uri}" if key.startswith("/") else uri
    raise FetchError("cannot find a Debian mirror in this machine's apt sources: add one")
