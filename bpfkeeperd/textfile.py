"""Metrics as a file, for node_exporter's textfile collector."""

import contextlib
import os

from bpfkeeperd.errors import KeeperError

ENDING = ".prom"


def check_textfile(path: str) -> None:
    """Refuses a file that would be read by nobody, or cannot be written.

    Raises:
        KeeperError: with what to do.
    """
    directory = os.path.dirname(path) or "."
    if not path.endswith(ENDING):
        reason, remedy = "node_exporter does not read it", f"choose a name that ends in {ENDING}"
    elif not os.path.isdir(directory):
        reason, remedy = f"there is no directory {directory}", "make it, or correct the path"
    else:
        return
    raise KeeperError(f"cannot write metrics to {path}: {reason}: {remedy}")


def write_textfile(path: str, text: bytes) -> None:
    """Puts a new file in the place of the former one, so that no reader sees half of it.

    Raises:
        KeeperError: it cannot be written.
    """
    # A name that node_exporter does not look at, and that nobody else writes to.
    temporary = f"{path}.{os.getpid()}"
    try:
        try:
            with contextlib.suppress(FileNotFoundError):  # of a process of that number that died
                os.unlink(temporary)
            with open(temporary, "xb", opener=_readable_by_all) as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            if os.path.lexists(temporary):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise KeeperError(f"cannot write metrics to {path}: {error.strerror}") from None


def _readable_by_all(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    os.fchmod(fd, 0o644)  # whatever the umask: node_exporter is somebody else
    return fd
