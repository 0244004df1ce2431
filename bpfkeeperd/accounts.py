"""Names of users and groups, as this machine knows them."""

import grp
import pwd
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
            ("owner", entry.owner, uids, user_id),
            ("group", entry.group, gids, group_id),
        ):
            if name is None or name in known:
                continue
            found = number(name)
            if found is not None:
                known[name] = found
            else:
                what = "user" if noun == "owner" else "group"
                message = f"there is no {what} {name} on this machine"
                problems.append(Problem(entry.marks[noun], message, "make it, or write a number"))
    if problems:
        raise ManifestError(tuple(problems))
    return replace(manifest, uids=uids, gids=gids) if uids or gids else manifest


def named(rights: Rights) -> Rights:
    """Rights with the names of user and group, for people."""
    return replace(rights, owner=user_name(rights.uid), group=group_name(rights.gid))


def user_name(uid: int) -> str:
    """The name of a user, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user_id(text: str) -> int | None:
    """The number of a user that is given by name or number; None: there is no such user."""
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        return _number(text)


def group_id(text: str) -> int | None:
    """Likewise of a group."""
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        return _number(text)


def _number(text: str) -> int | None:
    number = text.isascii() and text.isdecimal() and int(text) < (1 << 32) - 1
    return int(text) if number else None


def private_group(uid: int) -> int | None:
    """The primary group of a user if nobody else is in it, or has it as the primary one.

    Of a user without a name it is the group of that number.
    """
    try:
        gid = pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = uid
    everybody = pwd.getpwall()
    names = {user.pw_name for user in everybody if user.pw_uid == uid}
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    strangers = any(user.pw_gid == gid and user.pw_uid != uid for user in everybody)
    return None if strangers or members - names else gid
