"""What the service manager is told, by the protocol of sd_notify(3), and never at any price.

libsystemd's own sd_notify() opens a socket for each message, which takes a descriptor that may not
be left, and waits for as long as the service manager does not read.
"""

import array
import os
import socket
import struct
import time

SEND_SECONDS = 0.2
"""How long one message waits for room in the service manager's queue."""
STATUS_MAX = 400
"""Characters of a status line."""
LONG_WORK_SECONDS = 120
"""How long the service manager is to be patient with work that has steps."""
LOAD_SECONDS = 900
"""How long with work that has none: the verifier may take minutes for one program."""


class Notifier:
    """Tells the service manager; a context manager that lets go of the socket.

    Without an address (``NOTIFY_SOCKET``) nothing happens. Whatever goes wrong, the maps come
    first: nothing here raises.
    """

    __slots__ = ("_address", "_socket", "_unsaid", "_watchdog_seconds", "_widened")

    def __init__(self, address: str = "") -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._unsaid = ""
        self._widened = False
        self._watchdog_seconds = watchdog_seconds()
        self._socket: socket.socket | None = None
        if not address.startswith(("@", "/")):  # a virtual machine's are for its PID 1
            return
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            patience = struct.pack("@ll", int(SEND_SECONDS), int(SEND_SECONDS % 1 * 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        except OSError:
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether anybody is told anything."""
        return self._socket is not None

    def send(self, text: str, *fds: int) -> bool:
        """Whether a message, with descriptors, is on its way; False also when nobody listens."""
        if self._socket is None:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            data = text.encode(errors="backslashreplace")
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL, self._address)
        except OSError:
            return False
        return True

    def _tell(self, text: str) -> None:
        """What must not get lost: when it cannot be said now, `watchdog` tries again."""
        self._unsaid = "" if self.send(text) else text

    def ready(self, status: str) -> None:
        self._tell(f"READY=1\nSTATUS={one_line(status)}")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\nSTATUS=reloading")

    def stopping(self) -> None:
        self._tell("STOPPING=1\nSTATUS=stopping; programs stay attached, maps stay pinned")

    def watchdog(self) -> None:
        """The loop has come round: to be called at least as often as `watchdog_seconds` wants."""
        if self._unsaid:
            self._tell(self._unsaid)
        if self._widened:
            self._narrow()
        elif self._watchdog_seconds:
            self.send("WATCHDOG=1")

    def long_work(self) -> None:
        """Work goes on that takes its time, and has come a step further."""
        self._extend(LONG_WORK_SECONDS, "WATCHDOG=1")

    def load_begins(self) -> None:
        """From here on it may be long until something can be said, up to the next `watchdog`."""
        if not self._widened:
            self._widened = True
            wider = self._watchdog_seconds and self._watchdog_seconds < LOAD_SECONDS
            usec = [f"WATCHDOG_USEC={LOAD_SECONDS * 1_000_000}"] if wider else []
            self._extend(LOAD_SECONDS, *usec, "WATCHDOG=1")

    def _narrow(self) -> None:
        """The watchdog is as strict again as the unit has it."""
        usec = round((self._watchdog_seconds or 0) * 1_000_000)
        self._widened = bool(usec) and not self.send(f"WATCHDOG_USEC={usec}\nWATCHDOG=1")

    def _extend(self, seconds: int, *lines: str) -> None:
        self.send("\n".join([f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}", *lines]))

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None


def watchdog_seconds() -> float | None:
    """How often the service manager wants to hear from this process; None: it does not care."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    ours = pid in ("", str(os.getpid()))
    if not (ours and usec.isascii() and usec.isdecimal() and int(usec)):
        return None
    return int(usec) / 1_000_000


def one_line(text: str) -> str:
    """The text as the value of one variable: a line break would begin another."""
    safe = "".join(character if character.isprintable() else " " for character in text)
    return safe if len(safe) <= STATUS_MAX else f"{safe[: STATUS_MAX - 3]}..."
