"""Pins and directories of the keeper's own: made for this user alone, removed without following."""

import contextlib
import errno
import functools
import os
import stat

from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.transaction import Transaction


def make_directory(path: str) -> None:
    """Makes one directory; it may be there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError(f"make directory {path}", error.errno or 0) from None


def make_parents(transaction: Transaction, path: str, top: str) -> None:
    """Makes the directories between ``top`` and a path that are not there yet."""
    parts = path.removeprefix(f"{top}/").split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        directory = f"{top}/{'/'.join(parts[:depth])}"
        if not os.path.isdir(directory):
            make_directory(directory)
            transaction.on_undo(functools.partial(os.rmdir, directory))


def exchange(transaction: Transaction, staged: str, path: str, aside: str) -> None:
    """A staged pin takes the place of another, which stays aside until nothing can fail."""
    os.link(path, aside)
    transaction.on_undo(lambda: unlink(aside))
    os.rename(staged, path)
    transaction.on_undo(lambda: os.rename(aside, path))


def rights_of(path: str) -> Rights:
    """Who owns a pin, and its mode. Symbolic links are not followed."""
    return _rights(os.lstat(path))


def set_rights(path: str, rights: Rights, before: Rights | None = None) -> None:
    """Gives a pin its owner, group and mode; on the way nobody has more than before or after.

    Symbolic links are not followed. With ``before`` the pin has to have these rights.

    Raises:
        KernelError: it cannot be done; how far it came is not told.
        KeeperError: it has other rights than ``before``.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = _rights(os.fstat(fd))
            if before not in (None, found):
                raise KeeperError(
                    f"the pin {path} was changed while the reload went on: reload again"
                )
            there = f"/proc/self/fd/{fd}"
            mode = found.mode
            if (rights.uid, rights.gid) != (found.uid, found.gid):
                if mode != (mode := mode & rights.mode):
                    os.chmod(there, mode)
                os.chown(there, rights.uid, rights.gid)
            if mode != rights.mode:
                os.chmod(there, rights.mode)
        finally:
            os.close(fd)
    except OSError as error:
        what = f"set owner {rights.who}, mode {rights.mode:04o} on the pin {path}"
        raise KernelError(what, error.errno or 0) from None


def check_usable(path: str) -> None:
    """A keeper must not shut itself out of a pin.

    Raises:
        KernelError: this process may not read and write it.
    """
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        remedy = "this process could not open it any more: leave owner out, or add CAP_DAC_OVERRIDE"
        raise KernelError(f"give away the pin {path}", errno.EACCES, remedy)


def _rights(found: os.stat_result) -> Rights:
    return Rights(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))


def pins_below(directory: str, depth: int) -> list[str]:
    """The pins in a directory and those under it, by their paths from there; none without it."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    found.append(entry.name)
                elif depth > 1:
                    below = pins_below(entry.path, depth - 1)
                    found += [f"{entry.name}/{name}" for name in below]
    except FileNotFoundError:
        return []
    return found


def unlink(path: str) -> None:
    """Removes a pin; it may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: str) -> None:
    """Removes a directory of pins. Symbolic links are removed, not followed."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)


def remove_empty(path: str, top: str) -> None:
    """Removes the directories above a path that are empty now, up to but without ``top``.

    One with other rights than `make_directory` gives was prepared by somebody, and stays.
    """
    while (path := os.path.dirname(path)) != top:
        try:
            found = os.lstat(path)
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & ~0o700:
                return
            os.rmdir(path)
        except OSError:
            return
