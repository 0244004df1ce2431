"""The names of targets (`desired.target_name`) read back, as far as they say where an attachment is
that the manifest does not name any more. Pure."""

import re

from bpfkeeperd.layout import LinkKey, unescape
from bpfkeeperd.targets import CLSACT_PRIORITY

_INTERFACE = re.compile(
    "interface:([^/:@]{1,15}|[^/:]{1,15})(?:@(?P<netns>.+?))?(?:#(?P<priority>[0-9]+))?"
    "(?:[+](?:native|generic))?",
    re.DOTALL,
)
_NETFILTER = re.compile(
    "netfilter:[a-z0-9]+/[a-z_]+(?:@(?P<netns>.+?))?#-?[0-9]+(?:[+]defrag)?", re.DOTALL
)


def is_network(key: LinkKey) -> bool:
    """Whether its target is in a network namespace by name."""
    return key[2].startswith(("interface:", "netfilter:"))


def netns_of(key: LinkKey) -> str:
    """The network namespace in a target's name; empty for none, or where the name was cut."""
    found = _match(key)
    return (found["netns"] or "") if found else ""


def priority_of(key: LinkKey) -> int:
    """The priority of a filter of tc."""
    found = _INTERFACE.fullmatch(unescape(key[2]))
    return int(found["priority"] or CLSACT_PRIORITY) if found else CLSACT_PRIORITY


def was_cut(key: LinkKey) -> bool:
    """Whether a name is too long to be read back."""
    return "~" in key[2]


def _match(key: LinkKey) -> re.Match[str] | None:
    name = unescape(key[2])
    return _INTERFACE.fullmatch(name) or _NETFILTER.fullmatch(name)
