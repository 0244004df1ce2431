"""Names of users and groups, as this machine knows them."""

import grp
import pwd
from collections.abc import Callable
from dataclasses import replace

from bpfkeeperd.entries import NO_PIN, Manifest
from bpfkeeperd.errors import ManifestError, Problem
from bpfkeeperd.pinrights import Rights


def with_accounts(manifest: Manifest) -> Manifest:
    """The manifest with the numbers of the users and groups that it names.

    Raises:
        ManifestError: there is no such user or group.
    """
    uids: dict[str, int] = {}
    gids: dict[str, int] = {}
    problems = []
    for entry in (manifest.pin, *(found.pin for found in manifest.maps.values())):
        if entry is NO_PIN:
            continue
        for noun, name, known, number in (
            ("owner", entry.owner, uids, _uid),
            ("group", entry.group, gids, _gid),
        ):
            if name is None or name in known:
                continue
            try:
                known[name] = int(name) if name.isdecimal() else number(name)
            except KeyError:
                what = "user" if noun == "owner" else "group"
                message = f"there is no {what} {name} on this machine"
                problems.append(Problem(entry.marks[noun], message, "make it, or write a number"))
    if problems:
        raise ManifestError(tuple(problems))
    return replace(manifest, uids=uids, gids=gids) if uids or gids else manifest


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def named(rights: Rights) -> Rights:
    """Rights with the names of user and group, for people."""
    owner = _name(lambda: pwd.getpwuid(rights.uid).pw_name)
    return replace(rights, owner=owner, group=_name(lambda: grp.getgrgid(rights.gid).gr_name))


def _name(asked: Callable[[], str]) -> str:
    try:
        return asked()
    except KeyError:
        return ""
