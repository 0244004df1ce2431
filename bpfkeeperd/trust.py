"""Opens files and directories that nobody but trusted users can exchange or write to.

A path is walked from / by descriptors, symbolic links are followed here, and each component is
judged by the very descriptor that is used from then on: nothing can be exchanged between the check
and the reading.
"""

import errno
import os
import shlex
import stat
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bpfkeeperd.accounts import group_name, private_group, user_name
from bpfkeeperd.errors import KeeperError, UntrustedError, printable
from bpfkeeperd.files import read_open, unreadable

LINKS_MAX = 40
"""Symbolic links in one path, as in the kernel."""
DIRECTORIES_MAX = 256
"""That are held open from one path to the next."""
_ORDINARY_UID_MIN = 1000
_NO_ACL = (errno.ENODATA, errno.EOPNOTSUPP)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose files are taken, besides those of root and of the user that this process runs as."""

    users: frozenset[int] = frozenset()


NOBODY_ELSE = Trust()


@dataclass(eq=False, slots=True)
class _Directory:
    """One that was judged, and what was found in it."""

    fd: int
    path: str
    parent: "_Directory | None"
    found: "dict[str, _Directory | str]" = field(default_factory=dict)
    """A directory, or what a symbolic link says."""


class _Fault(Exception):
    """Who could change a component of a path, and what to do about it."""


class Files:
    """Files of one reload: the directories that they share are opened and judged once.

    A context manager that closes these; what was read stays.
    """

    __slots__ = ("_directories", "_groups", "_top", "_users", "_walked")

    def __init__(self, trust: Trust = NOBODY_ELSE) -> None:
        self._users = trust.users | {0, os.geteuid()}
        self._groups: frozenset[int] | None = None
        self._top: _Directory | None = None
        self._directories: list[_Directory] = []
        self._walked: dict[str, _Directory] = {}  # by path, links and all

    def read(self, path: str, size_max: int, what: str = "") -> bytes:
        """A regular file's bytes; the path is absolute.

        Raises:
            UntrustedError: somebody who is not trusted could change it.
            KeeperError: ``cannot read WHAT PATH: why``.
        """
        try:
            fd = self._open_file(path)
        except _Fault as fault:
            raise UntrustedError(f"cannot read {what}{path}: {fault}") from None
        except OSError as error:
            raise KeeperError(unreadable(path, error, what)) from None
        try:
            return read_open(fd, path, size_max, what)
        finally:
            os.close(fd)

    def names_in(self, path: str, what: str = "") -> list[str]:
        """The names in a directory into which nobody else can put any.

        Raises:
            FileNotFoundError: it is not there.
            UntrustedError, KeeperError: as `read`.
        """
        try:
            fd = self.open_directory(path, closed=True, what=f"read {what}")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise KeeperError(unreadable(path, error, what)) from None
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def open_directory(
        self, path: str, flags: int = os.O_RDONLY, *, closed: bool = False, what: str = "open "
    ) -> int:
        """A descriptor of a directory; ``closed``: one in which others may not even make files.

        Raises:
            OSError: it cannot be opened.
            UntrustedError: ``cannot WHAT PATH: who could change it``.
        """
        try:
            found = self._walk(path)
            fd = os.open(".", flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found.fd)
            try:
                self._judge(fd, found.path, closed=closed)
            except BaseException:
                os.close(fd)
                raise
        except _Fault as fault:
            raise UntrustedError(f"cannot {what}{path}: {fault}") from None
        return fd

    def _open_file(self, path: str) -> int:
        head, _, name = path.rpartition("/")
        where = self._walked.get(head) or self._walk(head)
        self._walked[head] = where
        for _ in range(LINKS_MAX + 1):
            link = where.found.get(name)
            if link is None:
                fd = self._open_here(where, name)
                if fd is not None:
                    return fd
                link = where.found[name] = self._read_link(where, name)
            if isinstance(link, _Directory):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            head, name = os.path.split(link.rstrip("/"))
            where = self._walk(head, where)
            if name in ("", ".", ".."):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _open_here(self, where: _Directory, name: str) -> int | None:
        """A descriptor to read what stands in a directory; None of a symbolic link."""
        try:
            fd = os.open(name, _FILE, dir_fd=where.fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        try:
            self._judge(fd, _joined(where, name))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _walk(self, path: str, start: _Directory | None = None) -> _Directory:
        """The directory at a path, which begins at / or at ``start``."""
        if len(self._directories) > DIRECTORIES_MAX and start is None:
            self.close()
        top = self._open_top()
        where = top if start is None or path.startswith("/") else start
        left, links = _parts(path), 0
        while left:
            name = left.pop()
            if name == "..":
                where = where.parent or top
                continue
            found = where.found.get(name)
            if found is None:
                found = where.found[name] = self._look_up(where, name)
            if isinstance(found, _Directory):
                where = found
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            where = top if found.startswith("/") else where
            left += _parts(found)
        return where

    def _open_top(self) -> _Directory:
        if self._top is None:
            self._top = self._hold(os.open("/", _DIRECTORY), "/", None)
        return self._top

    def _look_up(self, where: _Directory, name: str) -> _Directory | str:
        try:  # O_DIRECTORY has the kernel mount what is mounted on demand; O_PATH alone does not
            fd = os.open(name, _DIRECTORY, dir_fd=where.fd)
        except NotADirectoryError:
            return self._read_link(where, name)
        return self._hold(fd, _joined(where, name), where)

    def _hold(self, fd: int, path: str, parent: _Directory | None) -> _Directory:
        try:
            self._judge(fd, path)
        except BaseException:
            os.close(fd)
            raise
        directory = _Directory(fd, path, parent)
        self._directories.append(directory)
        return directory

    def _read_link(self, where: _Directory, name: str) -> str:
        """What a symbolic link says.

        Raises:
            NotADirectoryError: it is none, and no directory either.
        """
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=where.fd)
        try:
            found = os.fstat(fd)
            if not stat.S_ISLNK(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            self._judge(fd, _joined(where, name))
            text = os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)
        is_magic = text.startswith("/") and found.st_size != len(os.fsencode(text))
        # One of /proc can lead elsewhere than its text says: out of this root.
        if is_magic and not os.path.samestat(os.stat(name, dir_fd=where.fd), os.stat(text)):
            raise _Fault(f"{_joined(where, name)} leads where nothing can be checked")
        return text

    def _judge(self, fd: int, path: str, *, closed: bool = False) -> None:
        """Raises a `_Fault` when somebody who is not trusted could change what is open."""
        found = os.fstat(fd)
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid not in self._users:
            raise _Fault(_owner_fault(path, found.st_uid, mode))
        writable = mode & (stat.S_IWGRP | stat.S_IWOTH)
        is_directory = stat.S_ISDIR(found.st_mode)
        if not writable or not (is_directory or stat.S_ISREG(found.st_mode)):
            return  # a link has no mode of its own, and nothing else is read
        if is_directory and mode & stat.S_ISVTX and not closed:
            return  # what others may not rename in it is judged by its own owner
        if writable == stat.S_IWGRP and found.st_gid in self._trusted_groups():
            if not _has_acl(fd):
                return
            raise _Fault(
                f"{printable(path)} has an access control list: setfacl --remove-all"
                f" {_quoted(path)}"
            )
        if writable == stat.S_IWGRP:
            by, remedy = f"group {group_name(found.st_gid)}", "chmod g-w"
        else:
            by, remedy = "everybody", "chmod go-w"
        raise _Fault(
            f"{printable(path)} is writable by {by} (mode {mode:04o}): {remedy} {_quoted(path)}"
        )

    def _trusted_groups(self) -> frozenset[int]:
        if self._groups is None:
            found = {private_group(uid) for uid in self._users - {0}}
            self._groups = frozenset(gid for gid in found if gid is not None)
        return self._groups

    def close(self) -> None:
        """Closes the directories; they are opened again when they are needed."""
        for directory in self._directories:
            os.close(directory.fd)
        self._directories, self._walked, self._top = [], {}, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parts(path: str) -> list[str]:
    """The components of a path, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _joined(where: _Directory, name: str) -> str:
    return f"{where.path.rstrip('/')}/{name}"


def _quoted(path: str) -> str:
    return shlex.quote(printable(path))


def _has_acl(fd: int) -> bool:
    """Whether the group's bits may be those of other users."""
    try:  # by this path, because the descriptor may be O_PATH
        os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
    except OSError as error:
        return error.errno not in _NO_ACL
    return True


def _owner_fault(path: str, uid: int, mode: int) -> str:
    name = user_name(uid)
    text = f"{printable(path)} belongs to user {name} (mode {mode:04o}): chown root {_quoted(path)}"
    if uid < _ORDINARY_UID_MIN:
        return text
    return f"{text}, or take what that user can change with --trust {name}"
