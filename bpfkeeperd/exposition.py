"""Samples become the text that Prometheus reads (format 0.0.4). Pure.

prometheus_client does the same in 4 us a sample, which for a thousand maps is longer than all else
of a scrape together; here a sample is one f-string, whose labels were made before.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from bpfkeeperd.families import FAMILIES, PREFIX, Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Blocks = Mapping[str, str]
"""Family, without the prefix, to the text of its samples, see `block`."""


def labels(names: Sequence[str], values: Sequence[str]) -> str:
    """``{map="flows"}``; nothing for none."""
    if not names:
        return ""
    pairs = (f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}"


def escape(value: str) -> str:
    """A label's value as it stands between the quotes. What is no UTF-8, as a name on bpffs may be,
    has surrogates here, and is shown escaped."""
    if not value.isalnum():
        value = value.encode("utf-8", "backslashreplace").decode()
        value = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return value


def number(value: float) -> str:
    """As Go, which reads it, has numbers."""
    if type(value) is int:
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)


def block(name: str, samples: Iterable[str]) -> str:
    """The text of a family's samples, each given as labels, blank and value."""
    return "".join([f"{PREFIX}{name}{sample}\n" for sample in samples])


def exposition(*parts: Blocks) -> str:
    """All families that have samples, in the order of the table."""
    text: list[str] = []
    for name, head in _HEADS.items():
        samples = [found for part in parts if (found := part.get(name))]
        if samples:
            text += (head, *samples)
    return "".join(text)


def histogram(buckets: Iterable[tuple[float, int]], total_seconds: float) -> list[str]:
    """The samples of a histogram without labels, from cumulative buckets, the last +Inf."""
    found = list(buckets) or [(math.inf, 0)]
    return [
        *(f'_bucket{{le="{number(float(bound))}"}} {count}' for bound, count in found),
        f"_count {found[-1][1]}",
        f"_sum {number(total_seconds)}",
    ]


def _head(family: Family) -> str:
    text = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {family.name} {text}\n# TYPE {family.name} {family.kind}\n"


_HEADS = {family.name.removeprefix(PREFIX): _head(family) for family in FAMILIES}
