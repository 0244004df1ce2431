"""Debian packages without installing them: fetched with apt's own checks, unpacked in a directory.

Installing would run the package's scripts, which start services, and needs root.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


class FetchError(Exception):
    """A package cannot be had; the text says why."""


def apt_options(directory: Path, source: str = "") -> list[str]:
    """Has apt keep its lists and caches in a directory, so that it changes nothing elsewhere.

    ``source`` is a line of a sources.list that stands for the machine's own sources; empty: those.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    options: dict[str, object] = {
        "Dir::State::lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    if source:
        (directory / "sources.list").write_text(f"{source}\n")
        options |= {
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferencesparts": "-",
            "Acquire::Check-Valid-Until": "false",  # an old suite is no longer signed anew
            "APT::Default-Release": "",
        }
    return [f"-o{name}={value}" for name, value in options.items()]


def download(package: str, options: Sequence[str], directory: Path) -> Path:
    """The file of a package, in a directory in which there is no other version of it."""
    run(["apt-get", *options, "-qq", "download", package], directory)
    (file,) = directory.glob(f"{package}_*.deb")
    return file


def unpack(file: Path, directory: Path) -> None:
    """Makes the directory, with what is in the package, and removes the package's file."""
    half_made = directory.with_name(f"{directory.name}.{os.getpid()}")
    run(["dpkg-deb", "--extract", str(file), str(half_made)], file.parent)
    half_made.rename(directory)
    file.unlink()


def fetch_package(package: str, directory: Path) -> None:
    """Makes the directory, with what is in a package of this machine's release; one that is there
    already is taken as it is.

    Raises:
        FetchError: no such package in the machine's sources, or no network.
    """
    if directory.exists():
        return
    work = directory.absolute().with_name(f"{directory.name}.fetch.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        try:
            options = [f"-oDir::Cache={work}", "-oAPT::Sandbox::User=root"]
            file = download(package, options, work)
        except FetchError:  # the machine's lists are empty, or too old: newer ones, of our own
            options = apt_options(work)
            run(["apt-get", *options, "-qq", "update"], work)
            file = download(package, options, work)
        unpack(file, work / "unpacked")
        if not directory.exists():  # another run was faster
            (work / "unpacked").rename(directory)
    finally:
        shutil.rmtree(work)


def run(command: list[str], directory: Path) -> str:
    """What a command writes.

    Raises:
        FetchError: it failed.
    """
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"cannot run {' '.join(command)}: {error}") from error
    if done.returncode:
        raise FetchError(f"cannot run {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
