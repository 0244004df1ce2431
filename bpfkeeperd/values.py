"""What a text in a manifest must look like, by the field it stands in.

Each check takes the text and returns its normal form, or a Fault that says what is wrong. The
message of a Fault goes on from the name of the field: ``must be …``.
"""

import ipaddress
import posixpath
import re
from dataclasses import dataclass

from bpfkeeperd.layout import global_data_fault, name_fault
from bpfkeeperd.progtypes import PROGRAM_KINDS
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.targets import is_pattern

INTERFACE_MAX_BYTES = 15
PATTERN_MAX_BYTES = 64
_DECIMAL = re.compile("-?(0|[1-9][0-9]*)")
_HEX = re.compile("0[xX][0-9a-fA-F]+")
_ID_MAX = 2**32 - 1
"""No user and no group: -1."""
_DIGITS_MAX = 40
"""More than any bound has; Python's int() raises at thousands of them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a value, and what to write instead."""

    message: str
    remedy: str = ""


def short(text: str) -> str:
    """Text of the manifest, cut where it is too long to read."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(text: str) -> str:
    """Text of the manifest as messages show it: short, in double quotes."""
    return f'"{short(text)}"'


def any_text(text: str) -> str | Fault:
    return text or Fault("cannot be empty")


def pin_name(text: str) -> str | Fault:
    """A name under which a map can be pinned."""
    fault = name_fault(text)
    return Fault(f"cannot be {shown(text)}", fault) if fault else text


def elf_map_name(text: str) -> str | Fault:
    """A map of an object, by the name it has there; global data is named as its section."""
    fault = global_data_fault(text)
    return Fault(f"cannot be {shown(text)}", fault) if fault else any_text(text)


def account(text: str) -> str | Fault:
    """A user or a group: a name, or a number in its normal form."""
    number = re.fullmatch("0|[1-9][0-9]{0,9}", text)
    if number and int(text) < _ID_MAX:
        return text
    if number or not re.fullmatch(r"[^\s:/]*[^\s:/0-9][^\s:/]*", text):
        return Fault(f"cannot be {shown(text)}", "write a name, or its number")
    return text


def pin_mode(text: str) -> str | Fault:
    """The mode of a pin, as four octal digits."""
    if not re.fullmatch("[0-7]{3,4}", text):
        return Fault(f"cannot be {shown(text)}", 'write three or four octal digits: "0640"')
    mode = int(text, 8)
    if mode & ~0o666:
        less = f'write "{mode & 0o666:04o}"'
        return Fault(f"cannot be {shown(text)}: a pin can be read and written, no more", less)
    return f"{mode:04o}"


def program_kind(text: str) -> str | Fault:
    """The name of a program type or of a hook."""
    if text in PROGRAM_KINDS:
        return text
    return Fault(f"cannot be {shown(text)}", did_you_mean(text[:40], PROGRAM_KINDS))


def program(text: str) -> str | Fault:
    """A program of an object, as OBJECT/PROGRAM."""
    object_name, slash, name = text.rpartition("/")
    if slash and object_name and name:
        return text
    return Fault(f"must be a program, not {shown(text)}", "write OBJECT/PROGRAM")


def pin_root(text: str) -> str | Fault:
    if not text.startswith("/"):
        return Fault(f"must be an absolute path, not {shown(text)}", "write /sys/fs/bpf")
    if ".." in text.split("/"):
        return Fault('cannot hold ".."', "write the path out")
    path = absolute(text)
    return (
        Fault("cannot be /", "write the path of a bpffs, such as /sys/fs/bpf")
        if path == "/"
        else path
    )


def absolute(path: str) -> str:
    """The normal form of an absolute path; POSIX leaves a meaning to two leading slashes."""
    return "/" + posixpath.normpath(path).lstrip("/")


def listen(text: str) -> str | Fault:
    """``none``, or a HOST:PORT that `host_and_port` takes apart."""
    if text == "none":
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        remedy = "for example 127.0.0.1:9435, or none for no endpoint"
        return Fault(f"must be HOST:PORT, not {shown(text)}", remedy)
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        return Fault(f"cannot be {shown(text)}", "write a port from 0 to 65535 after the colon")
    if host.startswith("[") and host.endswith("]"):
        good = _is_address(host[1:-1], ipaddress.IPv6Address)
    elif ":" in host:
        return Fault(f"has an IPv6 address without brackets, {shown(text)}", "write [ADDRESS]:PORT")
    elif re.fullmatch("[0-9.]+", host):
        good = _is_address(host, ipaddress.IPv4Address)
    else:
        good = bool(re.fullmatch("[A-Za-z0-9_.-]+", host))
    return (
        text
        if good
        else Fault(f"cannot be {shown(text)}", "write an IPv4 address, [IPv6] or a host name")
    )


def _is_address(
    text: str, family: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]
) -> bool:
    try:
        family(text)
    except ValueError:
        return False
    return True


def host_and_port(text: str) -> tuple[str, int] | None:
    """What `listen` let through, taken apart; None for ``none``."""
    if text == "none":
        return None
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def sha256(text: str) -> str | Fault:
    if re.fullmatch("[0-9A-Fa-f]{64}", text):
        return text.lower()
    remedy = "sha256sum FILE prints it"
    if len(text) != 64:
        return Fault(f"must be 64 hexadecimal digits, this has {len(text)} characters", remedy)
    wrong = next(char for char in text if char not in "0123456789abcdefABCDEF")
    return Fault(f"must be 64 hexadecimal digits, {shown(wrong)} is none", remedy)


def interface(text: str) -> str | Fault:
    """A name that the kernel takes for a network interface (net/core/dev.c, dev_valid_name), or a
    pattern of such names."""
    if not text:
        return Fault("cannot be empty")
    size = len(text.encode())
    most = PATTERN_MAX_BYTES if is_pattern(text) else INTERFACE_MAX_BYTES
    if size > most:
        return Fault(f"{shown(text)} has {size} bytes, at most {most} can be")
    if text in (".", "..") or re.search(r"[\s/:]", text):
        return Fault(
            f"cannot be {shown(text)}", "write a name without slash, colon or blank, as in eth0"
        )
    return text


def netns(text: str) -> str | Fault:
    """The name of a network namespace, or the absolute path of one."""
    if not text:
        return Fault("cannot be empty", "leave it out for the daemon's own namespace")
    if ".." in text.split("/"):
        return Fault('cannot hold ".."', "write the path out")
    if text.startswith("/"):
        return absolute(text)
    if "/" in text or text == ".":
        return Fault(
            f"cannot be {shown(text)}", "write a name under /run/netns or an absolute path"
        )
    return text


def cgroup(text: str) -> str | Fault:
    """A cgroup v2 directory, absolute or relative to the mount; ``.`` is the root cgroup."""
    if not text:
        return Fault("cannot be empty", "write . for the root cgroup")
    if ".." in text.split("/"):
        return Fault('cannot hold ".."', "write the path out")
    if "**" in text:
        return Fault('cannot hold "**"', "write each level out: * stands for one name")
    if not text.startswith("/"):
        return posixpath.normpath(text)
    path = absolute(text)
    return Fault("cannot be /", "write . for the root cgroup") if path == "/" else path


def symbol(text: str) -> str | Fault:
    """A function's name or a pattern of names."""
    if not text or re.search(r"[\s/:+]", text):
        return Fault(
            f"cannot be {shown(text)}", "write the name of a function; offset: N stands beside it"
        )
    return text


def tracepoint(text: str) -> str | Fault:
    """``group/name``, or a name alone."""
    if not re.fullmatch("[A-Za-z0-9_]+([/:][A-Za-z0-9_]+)?", text):
        return Fault(f"cannot be {shown(text)}", "write GROUP/NAME, as in sched/sched_switch")
    return text.replace(":", "/")


def binary(text: str) -> str | Fault:
    """The absolute path of an executable or a library."""
    if not text.startswith("/") or ".." in text.split("/"):
        return Fault(f"must be an absolute path, not {shown(text)}", "write the path out")
    return absolute(text)


def integer(text: str, plain: bool, low: int, high: int) -> int | Fault:
    """A number in decimal or hexadecimal digits; ``plain``: it is written without quotes."""
    if not (_DECIMAL.fullmatch(text) or _HEX.fullmatch(text)):
        return Fault(f"must be an integer, not {shown(text)}", _integer_remedy(text, low, high))
    if not plain:
        return Fault(f"must be an integer, not the text {shown(text)}", "write it without quotes")
    number = int(text, 0) if len(text) <= _DIGITS_MAX else None
    if number is not None and low <= number <= high:
        return number
    bounds = f"{low}" if low == high else f"from {low} to {high}"
    return Fault(f"must be {bounds}, not {text if number is not None else shown(text)}")


def _integer_remedy(text: str, low: int, high: int) -> str:
    if low == high:
        return f"write {low}"
    if re.fullmatch("0[0-7]+", text) and len(text) <= _DIGITS_MAX:
        decimal = text.lstrip("0") or "0"
        return f"write {decimal}, or {int(text, 8):#x} if it was meant as octal"
    digits = re.sub("[_, ]", "", text)
    if len(text) <= _DIGITS_MAX and _DECIMAL.fullmatch(digits):
        return f"write {digits}"
    return "write decimal digits, or hexadecimal ones after 0x"


def boolean(text: str, plain: bool) -> bool | Fault:
    if plain and text in ("true", "false"):
        return text == "true"
    word = text.lower()
    remedy = ""
    if word in ("yes", "on", "1", "true", "y"):
        remedy = "write true, without quotes"
    if word in ("no", "off", "0", "false", "n"):
        remedy = "write false, without quotes"
    return Fault(f"must be true or false, not {shown(text)}", remedy)
