"""Opens the pin root and the keeper's own directory in it, which nobody else may be able to change.

BPF_OBJ_GET follows symbolic links, and a bpffs may be writable by everybody: what is below the own
directory is the keeper's because that is 0700, and because nobody else can exchange it or what is
above it. All of that is judged by the descriptor that is then locked.
"""

import errno
import os
import stat

from bpfkeeperd import kernel
from bpfkeeperd.directories import make_directory
from bpfkeeperd.errors import PinRootError, UntrustedError, errno_text
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
    try:
        own = _open_own(root)
    except OSError as error:
        raise _not_seen(f"{root}/{OWN_DIRECTORY}", error) from None
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
        why = errno_text(error.errno or 0)
        raise PinRootError(f"cannot make pin root {root}: {why}") from None


def open_root(root: str, trust: Trust = NOBODY_ELSE) -> int:
    """A descriptor of a pin root, to be locked.

    Raises:
        PinRootError: it is not there, or as `check_pin_root`.
    """
    fd = _open(root, trust, os.O_RDONLY)
    if fd is None:
        raise PinRootError(f"cannot open pin root {root}: {errno_text(errno.ENOENT)}")
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
    except OSError as error:
        raise _not_seen(f"{root}/{OWN_DIRECTORY}", error) from None


def has_own(root: str) -> bool:
    """Whether the own directory is there, for who is to change it. Once it is, nobody else can
    exchange it.

    Raises:
        PinRootError: as `open_own`, or this user may not see it.
    """
    own = f"{root}/{OWN_DIRECTORY}"
    try:
        fd = _open_own(root)
    except OSError as error:
        raise _not_seen(own, error) from None
    if fd is not None:
        os.close(fd)
    return fd is not None


def make_own(root: str) -> None:
    """Makes the own directory. It may be there, and is judged then.

    Raises:
        PinRootError: as `has_own`; somebody may have made it, or a symbolic link, since the look.
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
            except (FileNotFoundError, NotADirectoryError):
                fd = -1
            except OSError as error:
                raise _not_seen(parent, error) from None
            if fd >= 0:
                os.close(fd)
                return None
            raise PinRootError(
                f"pin root {root} is not there, and {parent} is not on a bpffs:"
                f" mount -t bpf bpf {_mount_point(root)}"
            ) from None
        except NotADirectoryError:
            raise PinRootError(f"pin root {root} is not a directory") from None
        except OSError as error:
            raise _not_seen(f"pin root {root}", error) from None
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
    try:
        found = fd if kernel.is_bpffs(fd) else -1
    except BaseException:
        os.close(fd)
        raise
    if found < 0:
        os.close(fd)
    return found


def _open_own(root: str) -> int | None:
    """As `open_own`; an OSError where it cannot be looked at."""
    own = f"{root}/{OWN_DIRECTORY}"
    try:
        fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        try:
            _judge_own(own, os.lstat(own))
        except (FileNotFoundError, NotADirectoryError):
            return None
        raise _not_seen(own, error) from None
    try:
        _judge_own(own, os.fstat(fd))
        if not kernel.is_bpffs(fd):
            raise PinRootError(f"{own} is not on a bpffs: unmount what is mounted there")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _judge_own(own: str, found: os.stat_result) -> None:
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if is_ours and not found.st_mode & 0o077:
        return
    remedy = "run as that user, or move it away if nobody knows it"
    if is_ours:
        remedy = f"see who put what there, then chmod 0700 {own}"
    raise PinRootError(
        f"{own} is not a directory of this user alone ({stat.filemode(found.st_mode)}, user"
        f" {found.st_uid}): {remedy}"
    )


def _not_seen(path: str, error: OSError) -> PinRootError:
    takes_root = ": it takes root" if isinstance(error, PermissionError) else ""
    why = errno_text(error.errno or 0)
    return PinRootError(f"cannot open {path}: {why}{takes_root}")


def _mount_point(root: str) -> str:
    """Where one can be mounted: a directory that is there, as far as it can be told."""
    if root.startswith("/sys/fs/bpf"):
        return "/sys/fs/bpf"
    parent = os.path.dirname(root)
    return parent if os.path.isdir(parent) and not os.path.isdir(root) else root
