"""Pins and directories of the keeper's own: made for this user alone, removed without following."""

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator

from bpfkeeperd.errors import KeeperError, KernelError
from bpfkeeperd.pinrights import Rights
from bpfkeeperd.transaction import Transaction

_CAPABILITIES = "it takes CAP_CHOWN or CAP_FOWNER, which pin-owners.conf gives to the service"


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
    """Makes the directories between ``top`` and a path that are not there yet.

    Raises:
        KeeperError: somebody else has put one there, or a symbolic link, since everything was
            looked at.
    """
    parts = path.removeprefix(f"{top}/").split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        directory = f"{top}/{'/'.join(parts[:depth])}"
        if not is_there(directory):
            make_new_directory(directory)
            transaction.on_undo(functools.partial(remove_directory, directory))
        found = status_of(directory)
        if found is None or not _is_closed(found):
            raise KeeperError(
                f"cannot pin in {directory}: somebody else has put it there while the reload went"
                " on: reload again, which tells whose it is"
            )


def _is_closed(directory: os.stat_result) -> bool:
    """Whether nobody but root and this user can exchange what is in a directory."""
    is_own = directory.st_uid in (0, os.geteuid())
    is_open = directory.st_mode & stat.S_IWOTH and not directory.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(directory.st_mode) and is_own and not is_open


def exchange(transaction: Transaction, staged: str, path: str, aside: str) -> None:
    """A staged pin takes the place of another, which stays aside until nothing can fail."""
    link(path, aside)
    transaction.on_undo(lambda: unlink(aside))
    rename(staged, path)
    transaction.on_undo(lambda: rename(aside, path))


def rights_of(path: str) -> Rights:
    """Who owns a pin, and its mode. Symbolic links are not followed."""
    with doing(f"look at {path}"):
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
        remedy = _CAPABILITIES if error.errno == errno.EPERM else ""
        raise KernelError(what, error.errno or 0, remedy) from None


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
