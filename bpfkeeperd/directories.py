"""Pins and directories of the keeper's own: made for this user alone, removed without following."""

import contextlib
import functools
import os
import stat

from bpfkeeperd.errors import KernelError
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


def take_rights(staged: str, path: str) -> None:
    """Gives a staged pin the owner and mode of the one whose place it is to take, so that who could
    open that can open this."""
    found = os.stat(path, follow_symlinks=False)
    try:
        os.chown(staged, found.st_uid, found.st_gid, follow_symlinks=False)
    except PermissionError as error:
        action = f"give the new pin the owner and group of {path}"
        raise KernelError(action, error.errno or 0, "it takes CAP_CHOWN") from None
    os.chmod(staged, stat.S_IMODE(found.st_mode))


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
