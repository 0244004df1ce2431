"""Kernels of other Debian releases, from the mirror this machine itself uses."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

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


class FetchError(Exception):
    """A kernel cannot be had; the text says why."""


def fetch_kernel(release: Release, directory: Path) -> Kernel:
    """Downloads and unpacks a kernel; one that is there already is taken as it is.

    Raises:
        FetchError: no mirror, no such suite there, or no network.
    """
    unpacked = directory / "unpacked"
    if not unpacked.exists():
        _download(release, directory)
        (package,) = directory.glob("linux-image-[0-9]*.deb")
        half_made = directory / "unpacking"
        _run(["dpkg-deb", "--extract", str(package), str(half_made)], directory)
        half_made.rename(unpacked)
        package.unlink()
    (image,) = unpacked.glob("boot/vmlinuz-*")
    # Releases from trixie on have no /lib of its own, but packages may still ship either.
    (modules,) = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
    return Kernel(image, modules)


def _download(release: Release, directory: Path) -> None:
    """Fetches the package with apt's own checks, in a directory of its own."""
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "sources.list").write_text(f"deb {_mirror()} {release.suite} main\n")
    options = {
        "Dir::Etc::sourcelist": directory / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",  # an old suite is no longer signed anew
        "APT::Sandbox::User": "root",
        "APT::Default-Release": "",
    }
    settings = [f"-o{name}={value}" for name, value in options.items()]
    _run(["apt-get", *settings, "-qq", "update"], directory)
    depends = _run(["apt-cache", *settings, "depends", PACKAGE], directory)
    names = [line.split()[-1] for line in depends.splitlines() if " Depends: " in line]
    kernels = [name for name in names if name.startswith(f"linux-image-{release.version}.")]
    if not kernels:
        raise FetchError(f"cannot find Linux {release.version} in {release.suite}: {names}")
    _run(["apt-get", *settings, "-qq", "download", kernels[0]], directory)


def _mirror() -> str:
    """The archive of this machine's sources, with the key they give for it, as in a source line."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SIGNED_BY)"
    command = ["apt-get", "indextargets", "--format", fields, "Identifier: Packages"]
    known = _run(command, Path("/"))
    for line in known.splitlines():
        origin, label, uri, key = line.split("|")
        if (origin, label) == ("Debian", "Debian"):
            return f"[signed-by={key}] {uri}" if key.startswith("/") else uri
    raise FetchError("cannot find a Debian mirror in this machine's apt sources: add one")


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise FetchError(f"cannot run {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
