"""Removes pins and directories of the keeper's own."""

import os


def remove_tree(path: str) -> None:
    """Removes a directory of pins. Symbolic links are removed, not followed."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)
