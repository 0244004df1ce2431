"""The names of targets (`desired.target_name`) read back, as far as they say where an attachment is
that the manifest does not name any more. Pure."""

import re

from bpfkeeperd.layout import LinkKey, unescape
from bpfkeeperd.targets import CLSACT_PRIORITY


def is_netfilter(key: LinkKey) -> bool:
    """Whether its target is a netfilter hook."""
    return key[2].startswith("netfilter:")


def priority_of(key: LinkKey) -> int:
    """The priority of a filter of tc."""
    found = re.search("#([0-9]+)$", unescape(key[2]))
    return int(found[1]) if found else CLSACT_PRIORITY
