"""What can go wrong, and how it is said: what cannot be done, why, and what to do about it."""

import errno
import os
from dataclasses import dataclass, field

ENOTSUPP = 524
"""The kernel's internal "operation not supported"; it leaks to user space and has no strerror."""


PASSING = frozenset(
    {
        *(errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE),
        *(errno.EAGAIN, errno.EINTR, errno.EBUSY),
    }
)
"""What is no property of the kernel or of what was asked for: it may go well the next time."""


def errno_text(number: int) -> str:
    """The text of an errno with its name, 524 included: ``Invalid argument (EINVAL)``."""
    if number == ENOTSUPP:
        return "not supported by the kernel (ENOTSUPP, 524)"
    name = errno.errorcode.get(number, str(number))
    return f"{os.strerror(number)} ({name})"


def printable(text: str) -> str:
    """Text out of somebody's file, fit for messages: no line ends, no terminal's escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class KeeperError(Exception):
    """Base of everything bpfkeeperd raises on purpose. ``str()`` is the whole message."""


class KernelError(KeeperError):
    """A system call that failed: what was attempted, the errno, and a remedy where one is known."""

    def __init__(self, action: str, number: int, remedy: str = "") -> None:
        self.action = action
        self.errno = number
        self.remedy = remedy
        text = f"cannot {action}: {errno_text(number)}"
        super().__init__(f"{text}: {remedy}" if remedy else text)


class ObjectError(KeeperError):
    """A BPF object file that cannot be read, or that the kernel refuses to load."""

    def __init__(self, message: str, detail: str = "") -> None:
        self.detail = detail
        """More lines for those who want them: libbpf's log or the verifier's; may be empty."""
        super().__init__(message)


class UntrustedError(KeeperError):
    """A file or directory that somebody who is not trusted could change."""


class LibbpfError(ObjectError):
    """libbpf remembers something wrong of the kernel: no object can be loaded by this process."""


class PinRootError(KeeperError):
    """The pin root is not there, is not on a bpffs, or belongs to somebody else."""


class BusyError(KeeperError):
    """Another keeper holds the pin root."""


class NoDaemonError(KeeperError):
    """No daemon answers for this pin root."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a manifest file; line and column count from 1, in characters."""

    file: str
    line: int
    column: int
    source: str = field(default="", compare=False, repr=False)
    """The text of that line, without its end."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a manifest: where, what, and what to do about it."""

    mark: Mark
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """``file:line:column: message``, then the source line and a caret under the column."""
        text = f"{self.mark}: {self.message}"
        if self.remedy:
            text += f": {self.remedy}"
        if self.mark.source:
            source = self.mark.source
            start = 0
            if len(source) > 160:  # a hostile or generated line: show the part around the column
                start = max(0, self.mark.column - 80)
                source = source[start : start + 160]
            before = source[: self.mark.column - 1 - start]
            indent = "".join("\t" if c == "\t" else " " for c in before)
            text += f"\n    {source}\n    {indent}^"
        return text


class ManifestError(KeeperError):
    """Every problem of a manifest at once, in the order of the files and lines; or ``why`` none of
    its files may be taken."""

    def __init__(self, problems: tuple[Problem, ...], why: str = "") -> None:
        self.problems = problems
        super().__init__(why or "\n".join(str(problem) for problem in problems))


def error_text(error: KeeperError | OSError) -> str:
    """What went wrong with something of the keeper's own, also where the system said it."""
    if isinstance(error, OSError):
        return f"cannot change {error.filename}: {errno_text(error.errno or 0)}"
    return str(error)
