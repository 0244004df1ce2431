"""What systemd passes on, and the journal. Only this module knows systemd's own library.

Everything here works outside systemd too: nothing is passed on, the log goes to stderr.
"""

import logging
import os
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bpfkeeperd.notify import Notifier
from systemd import daemon as sd_daemon

log = logging.getLogger("bpfkeeperd")


class MessageId(StrEnum):
    """MESSAGE_ID of the journal entries that others may look for."""

    RELOAD_OK = "5a1a5f1b0f9c4d6c8f3f9b7c3a6e21d4"
    RELOAD_FAILED = "c0d9c7a8a9d34c4f9d4f6d0c5b8e7f12"
    RELOAD_REJECTED = "0b6f7e2d4c1a49f88f0e3a7d9c5b6e34"
    MAP_ID_CHANGED = "9d3b2c7e6f5a4e8d9a1b0c2d3e4f5a67"
    DRIFT = "7e4f1a2b3c5d4e6f8a9b0c1d2e3f4a58"
    HEALED = "41c7d0e6b8a24f3f9e5d6c2b1a0f9e83"
    HEAL_FAILED = "b2f85d1c6e3a47908c1d7e4f2a5b6c90"
    HEAL_GIVEN_UP = "e6a90c3d5b7f41d28f0a1c9e4d3b2a75"
    MAP_CONFLICT = "3f8e61b7c94a4d05b2d7a0e85c16f93b"


def set_up_log(level: int = logging.INFO) -> None:
    """Logs to the journal when that is where stderr goes, else to stderr."""
    handler: logging.Handler
    if _stderr_is_journal():
        from systemd import journal

        handler = journal.JournalHandler(SYSLOG_IDENTIFIER="bpfkeeperd")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("bpfkeeperd: %(message)s"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def _stderr_is_journal() -> bool:
    """As sd_journal_stream: JOURNAL_STREAM holds device and inode of the stream to the journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (str(status.st_dev), str(status.st_ino)) == (device, inode)


def fields(message_id: MessageId, **values: object) -> dict[str, object]:
    """Journal fields of a log record, the own ones prefixed BPFKEEPERD_."""
    own = {f"BPFKEEPERD_{name.upper()}": str(value) for name, value in values.items()}
    return {"MESSAGE_ID": str(message_id), **own}


METRICS_SOCKET_NAMES = ("bpfkeeperd-metrics", "bpfkeeperd-metrics.socket")
"""FileDescriptorName= of the socket unit, and the name that it has without that setting."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What the service manager passed to this process."""

    metrics: socket.socket | None
    """The socket that it listens on for the metrics: the one of that name, else the only listening
    TCP socket."""
    stored: Mapping[str, tuple[int, ...]]
    """By name, descriptors that are no sockets: what it kept of a former start's."""


def passed_descriptors() -> Passed:
    """Takes over what the service manager passed; all of it is close-on-exec.

    To be called once: no child is to take the descriptors for its own, so the variables go. Other
    sockets are left as they are.
    """
    try:
        names = sd_daemon.listen_fds_with_names(unset_environment=False)
    except (OSError, SystemError) as error:  # the latter for names that are no UTF-8
        log.warning("cannot take over what the service manager passed: %s", error)
        return Passed(None, {})
    finally:
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(variable, None)  # libsystemd would leave them to children
    stored: dict[str, tuple[int, ...]] = {}
    for fd, name in names.items():
        if name not in METRICS_SOCKET_NAMES and not stat.S_ISSOCK(os.fstat(fd).st_mode):
            stored[name] = (*stored.get(name, ()), fd)
    return Passed(_metrics_socket(names), stored)


def _metrics_socket(names: Mapping[int, str]) -> socket.socket | None:
    found = [fd for fd, name in names.items() if name in METRICS_SOCKET_NAMES]
    found = found or [fd for fd in names if _listens_on_tcp(fd)]
    if len(found) > 1:
        log.warning(
            "the service manager passed %d sockets, any of which could be for the metrics: none is"
            " used: set FileDescriptorName=%s for one",
            len(found),
            METRICS_SOCKET_NAMES[0],
        )
    if len(found) != 1:
        return None
    try:
        return socket.socket(fileno=found[0])
    except OSError as error:
        log.warning("what the service manager passed for the metrics is no socket: %s", error)
        return None


def _listens_on_tcp(fd: int) -> bool:
    return bool(sd_daemon.is_socket_inet(fd, type=socket.SOCK_STREAM, listening=1))


def store_room() -> int | None:
    """How many descriptors the service manager keeps (FileDescriptorStoreMax=); None: it does not
    say, as before systemd 254."""
    text = os.environ.get("FDSTORE", "")
    return int(text) if text.isascii() and text.isdecimal() else None


def notifier() -> Notifier:
    """Of the service manager that started this process, if one did."""
    return Notifier(os.environ.get("NOTIFY_SOCKET", ""))
