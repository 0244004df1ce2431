"""Opens the pin root and the keeper's own directory in it, which nobody else may be able to change.

BPF_OBJ_GET follows symbolic links, and a bpffs may be writable by everybody: what is below the own
directory is the keeper's because that is 0700, and because nobody else can exchange it or what is
above it. All of that is judged by the descriptor that is then locked.
"""

import os
import stat

from bpfkeeperd import kernel
from bpfkeeperd.directories import make_directory
from bpfkeeperd.errors import PinRootError, UntrustedError
from bpfkeeperd.layout import OWN_DIRECTORY
from bpfkeeperd.trust import NOBODY_ELSE, Files, Trust


def check_pin_root(root: str, trust: Trust = NOBODY_ELSE) -> bool:
    """Whether a pin root is there; False when it still has to be made, on a bpffs.

    Raises:
        PinRootError: it is not on a bpffs, somebody else could exchange it or what is in it, or the
            keeper's directory in it is somebody else's.
    """
    fd = _open(root, trust, os.O_PATH)
    if fd is None:
        return False
    os.close(fd)
    own = _open_own(root)
    if own is not None:
        os.close(own)
    return True


def make_pin_root(root: str, trust: Trust = NOBODY_ELSE) -> None:
    """Makes a pin root one level below a bpffs, as libbpf does.

    Raises:
        PinRootError: as `check_pin_root`, or it cannot be made.
    """
    if check_pin_root(root, trust):
        return
    try:
        os.mkdir(root, 0o700)
    except OSError as error:
        raise PinRootError(f"cannot make pin root {root}: {error.strerror}") from None


def open_root(root: str, trust: Trust = NOBODY_ELSE) -> int:
    """A descriptor of a pin root, to be locked.

    Raises:
        PinRootError: it is not there, or as `check_pin_root`.
    """
    fd = _open(root, trust, os.O_RDONLY)
    if fd is None:
        raise PinRootError(f"cannot open pin root {root}: No such file or directory")
    return fd


def open_own(root: str) -> int | None:
    """A descriptor of the own directory, to be locked; None where there is none, or none that this
    user may see.

    Raises:
        PinRootError: it is not of this user alone.
    """
    try:
        return _open_own(root)
    except PermissionError:
        return None


def has_own(root: str) -> bool:
    """Whether the own directory is there. Once it is, nobody else can exchange it.

    Raises:
        PinRootError: as `open_own`.
    """
    fd = open_own(root)
    if fd is not None:
        os.close(fd)
    return fd is not None


def make_own(root: str) -> None:
    """Makes the own directory. It may be there, and is judged then.

    Raises:
        PinRootError: as `open_own`; somebody may have made it, or a symbolic link, since the look.
        KernelError: it cannot be made.
    """
    make_directory(f"{root}/{OWN_DIRECTORY}")
    if not has_own(root):
        raise PinRootError(f"{root}/{OWN_DIRECTORY} went away as soon as it was made")


def _open(root: str, trust: Trust, flags: int) -> int | None:
    """A descriptor of a pin root; None: it can be made, on a bpffs."""
    with Files(trust) as files:
        try:
            fd = _open_bpffs(files, root, flags)
        except FileNotFoundError:
            parent = os.path.dirname(root)
            try:
                fd = _open_bpffs(files, parent, os.O_PATH)
            except OSError:
                fd = -1
            if fd >= 0:
                os.close(fd)
                return None
            raise PinRootError(
                f"pin root {root} is not there, and {parent} is not on a bpffs:"
                f" mount -t bpf bpf {_mount_point(root)}"
            ) from None
        except PermissionError:
            raise PinRootError(f"cannot look into pin root {root}: it takes root") from None
        except NotADirectoryError:
            raise PinRootError(f"pin root {root} is not a directory") from None
        except OSError as error:
            raise PinRootError(f"cannot look at pin root {root}: {error.strerror}") from None
    if fd < 0:
        raise PinRootError(
            f"pin root {root} is not on a bpffs: mount -t bpf bpf {_mount_point(root)}"
        )
    return fd


def _open_bpffs(files: Files, path: str, flags: int) -> int:
    """A descriptor of a directory; negative: it is not on a bpffs.

    Raises:
        OSError: it cannot be opened.
        PinRootError: somebody else could change it.
    """
    try:
        fd = files.open_directory(path, flags, what="pin in ")
    except UntrustedError as error:
        raise PinRootError(str(error)) from None
    if kernel.is_bpffs(fd):
        return fd
    os.close(fd)
    return -1


def _open_own(root: str) -> int | None:
    """As `open_own`; a PermissionError where this user may not look into the pin root."""
    own = f"{root}/{OWN_DIRECTORY}"
    try:
        fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        try:
            found = os.lstat(own)
        except (FileNotFoundError, NotADirectoryError):
            return None
        raise PinRootError(_own_fault(own, found)) from None
    found, on_bpffs = os.fstat(fd), kernel.is_bpffs(fd)
    if on_bpffs and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return fd
    os.close(fd)
    if not on_bpffs:
        raise PinRootError(f"{own} is not on a bpffs: unmount what is mounted there")
    raise PinRootError(_own_fault(own, found))


def _own_fault(own: str, found: os.stat_result) -> str:
    what = f"{own} is not a directory of this user alone"
    who = f"({stat.filemode(found.st_mode)}, user {found.st_uid})"
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
        return f"{what} {who}: see who put what there, then chmod 0700 {own}"
    return f"{what} {who}: run as that user, or move it away if nobody knows it"


def _mount_point(root: str) -> str:
    """Where one can be mounted: a directory that is there, as far as it can be told."""
    if root.startswith("/sys/fs/bpf"):
        return "/sys/fs/bpf"
    parent = os.path.dirname(root)
    return parent if os.path.isdir(parent) and not os.path.isdir(root) else root
