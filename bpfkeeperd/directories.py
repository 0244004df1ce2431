"""Pins and directories of the keeper's own: made for this user alone, removed without following."""

import contextlib
import functools
import os
import stat
from collections.abc import Iterator

from bpfkeeperd.errors import KernelError
from bpfkeeperd.transaction import Transaction


@contextlib.contextmanager
def doing(action: str) -> Iterator[None]:
    """Has a system call that fails in a block be told by what it was to do."""
    try:
        yield
    except OSError as error:
        raise KernelError(action, error.errno or 0) from None


def make_new_directory(path: str) -> None:
    with doing(f"make directory {path}"):
        os.mkdir(path, 0o700)


def make_directory(path: str) -> None:
    """Makes one directory; it may be there."""
    with doing(f"make directory {path}"), contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def is_directory(path: str) -> bool:
    """Whether there is one.

    Raises:
        KernelError: nobody can tell, for another reason than that nothing is there.
    """
    with doing(f"look at {path}"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(os.stat(path).st_mode)  # tc makes symbolic links to directories
    return False


def is_there(path: str) -> bool:
    """Whether anything has this name; raises as `is_directory`."""
    return status_of(path) is not None


def status_of(path: str) -> os.stat_result | None:
    """Of a pin or directory; None where nothing is. Raises as `is_directory`."""
    with (
        doing(f"look at {path}"),
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
    ):
        return os.lstat(path)
    return None


def names_in(directory: str) -> list[str]:
    """All names in a directory; none without it."""
    with doing(f"read {directory}"), contextlib.suppress(FileNotFoundError):
        return os.listdir(directory)
    return []


def rename(source: str, path: str) -> None:
    """In one step, over whatever has the name."""
    with doing(f"rename {source} to {path}"):
        os.rename(source, path)


def link(path: str, other: str) -> None:
    """Gives a pin another name beside the one it has."""
    with doing(f"link {path} to {other}"):
        os.link(path, other)


def remove_directory(path: str) -> None:
    """Removes an empty directory."""
    with doing(f"remove directory {path}"):
        os.rmdir(path)


def make_parents(transaction: Transaction, path: str, top: str) -> None:
    """Makes the directories between ``top`` and a path that are not there yet."""
    parts = path.removeprefix(f"{top}/").split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        directory = f"{top}/{'/'.join(parts[:depth])}"
        if not is_directory(directory):
            make_directory(directory)
            transaction.on_undo(functools.partial(remove_directory, directory))


def exchange(transaction: Transaction, staged: str, path: str, aside: str) -> None:
    """A staged pin takes the place of another, which stays aside until nothing can fail."""
    link(path, aside)
    transaction.on_undo(lambda: unlink(aside))
    rename(staged, path)
    transaction.on_undo(lambda: rename(aside, path))


def take_rights(staged: str, path: str) -> None:
    """Gives a staged pin the owner and mode of the one whose place it is to take, so that who could
    open that can open this."""
    with doing(f"look at {path}"):
        found = os.lstat(path)
    with doing(f"give {staged} the owner and mode of {path}"):
        os.chown(staged, found.st_uid, found.st_gid, follow_symlinks=False)
        os.chmod(staged, stat.S_IMODE(found.st_mode))


def pins_below(directory: str, depth: int) -> list[str]:
    """The pins in a directory and those under it, by their paths from there; none without it."""
    found = []
    with (
        doing(f"read {directory}"),
        contextlib.suppress(FileNotFoundError),
        os.scandir(directory) as entries,
    ):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                found.append(entry.name)
            elif depth > 1:
                below = pins_below(entry.path, depth - 1)
                found += [f"{entry.name}/{name}" for name in below]
    return found


def unlink(path: str) -> None:
    """Removes a pin; it may be gone."""
    with doing(f"remove {path}"), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: str) -> None:
    """Removes a directory of pins, if it is there. Symbolic links are removed, not followed."""
    with doing(f"read {path}"):
        try:
            with os.scandir(path) as found:
                entries = list(found)
        except FileNotFoundError:
            return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(entry.path)
        else:
            unlink(entry.path)
    remove_directory(path)


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
