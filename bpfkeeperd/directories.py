"""Pins and directories of the keeper's own: made for this user alone, removed without following."""

import contextlib
import os

from bpfkeeperd.errors import KernelError


def make_directory(path: str) -> None:
    """Makes one directory; it may be there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise KernelError(f"make directory {path}", error.errno or 0) from None


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
    """Removes the directories above a path that are empty now, up to but without ``top``."""
    while (path := os.path.dirname(path)) != top:
        try:
            os.rmdir(path)
        except OSError:
            return
