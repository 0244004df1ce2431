"""Attachments without a link, which a pin of the attached program records."""

from bpfkeeperd.enactfilter import take_down
from bpfkeeperd.layout import Layout, LinkKey, unescape
from bpfkeeperd.mapattached import PREFIX, detach_from_map


def detach_recorded(layout: Layout, key: LinkKey) -> str:
    """Detaches what is recorded, and removes the record; returns what there is to say."""
    if unescape(key[2]).startswith(PREFIX):
        detach_from_map(layout, key)
        return ""
    return take_down(layout, key)
