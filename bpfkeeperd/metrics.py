"""What Prometheus sees: a collector over the last status and the counts of this moment.

The only user of prometheus_client. A map's name is the label and its ID a value: an ID in a label
would break rate() at the very moment that it is there to show.
"""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bpfkeeperd import __version__
from bpfkeeperd.maptypes import type_name
from bpfkeeperd.state import (
    AttachmentStatus,
    MapIdChange,
    MapStatus,
    ReloadResult,
    ReloadStatus,
    Status,
)

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Every Prometheus takes it, and every supported prometheus_client writes it."""

_Sample = tuple[str, tuple[str, ...], float]
"""Family, label values, value."""

_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "bpfkeeper_map_id": (
        "Kernel ID of the map that is pinned under the name now.",
        ("map",),
    ),
    "bpfkeeper_map_entries": (
        "Entries in use; for ring buffers (type ringbuf and user_ringbuf) bytes not yet consumed.",
        ("map",),
    ),
    "bpfkeeper_map_max_entries": (
        "Capacity in entries; for ring buffers (type ringbuf and user_ringbuf) in bytes.",
        ("map",),
    ),
    "bpfkeeper_map_fill_ratio": (
        "Share of the capacity in use, 0 to 1; LRU maps are near 1 by design.",
        ("map",),
    ),
    "bpfkeeper_map_inner_entries": (
        "Of a map of maps: entries in use of its inner maps together, of those that are counted.",
        ("map",),
    ),
    "bpfkeeper_map_info": (
        "Definition of the map, its policy, and how its entries are counted (empty: not at all).",
        ("map", "type", "key_size", "value_size", "policy", "counted_by"),
    ),
    "bpfkeeper_attachment_up": (
        "Whether the program that should serve the hook of the target serves it.",
        ("object", "program", "target"),
    ),
    "bpfkeeper_drift": (
        "Differences between the manifest and the kernel now.",
        ("kind",),
    ),
    "bpfkeeper_heal_given_up": (
        "What drifts again and again or cannot be put right, and is left alone for now.",
        (),
    ),
    "bpfkeeper_last_reload_success_timestamp_seconds": (
        "Unix time of the last reload that went well.",
        (),
    ),
    "bpfkeeper_build_info": (
        "Version of bpfkeeperd.",
        ("version",),
    ),
}
_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "bpfkeeper_map_id_changes_total": (
        "Times that another map came under the name, by reason.",
        ("map", "reason"),
    ),
    "bpfkeeper_map_reuses_total": (
        "Reloads that kept the map.",
        ("map",),
    ),
    "bpfkeeper_reloads_total": (
        "Reloads by result, the start included.",
        ("result",),
    ),
    "bpfkeeper_heals_total": (
        "Differences that were put right without a reload (ok), or not (failed), by kind.",
        ("kind", "result"),
    ),
    "bpfkeeper_scrape_errors_total": (
        "Samples that could not be had, by map; an empty map: a failure that concerns all.",
        ("map",),
    ),
}


class Metrics(Collector):
    """The metrics of one daemon; may be rendered by several threads at once.

    A map that cannot be shown is left out and counted in bpfkeeper_scrape_errors_total; nothing
    that the three callables raise fails the scrape.
    """

    def __init__(
        self,
        status: Callable[[], Status],
        counts: Callable[[], Mapping[int, int]],
        counted_by: Callable[[int], str],
    ) -> None:
        self._status = status
        self._counts = counts
        self._counted_by = counted_by
        self._errors: dict[str, int] = {"": 0}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """The text of a scrape, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE

    def collect(self) -> Iterator[Metric]:
        """Fresh families, in a fixed order."""
        samples: list[_Sample] = [("bpfkeeper_build_info", (__version__,), 1.0)]
        status = Status()
        counts: Mapping[int, int] = {}
        durations: list[Metric] = []
        with self._counting_errors():
            status = self._status()
        with self._counting_errors():
            counts = self._counts()
        for map_status in status.maps:
            with self._counting_errors(map_status.name):
                samples += _map_samples(map_status, counts, self._counted_by)
        for attachment in status.attachments:
            with self._counting_errors():
                samples += _attachment_samples(attachment)
        with self._counting_errors():
            samples += [
                ("bpfkeeper_drift", (_label(kind),), float(differences))
                for kind, differences in status.drift.items()
            ]
        with self._counting_errors():
            samples += _heal_samples(status)
        with self._counting_errors():
            samples += _reload_samples(status.reloads)
        with self._counting_errors():
            durations.append(_durations(status.reloads))
        samples += self._error_samples(status)
        return iter([*_families(samples), *durations])

    @contextmanager
    def _counting_errors(self, map_name: str = "") -> Iterator[None]:
        """What fails in the block is counted, and the scrape goes on without it."""
        try:
            yield
        except Exception:
            log.debug("cannot show %s", f"map {map_name}" if map_name else "all", exc_info=True)
            with self._lock:
                name = _label(map_name)
                self._errors[name] = self._errors.get(name, 0) + 1

    def _error_samples(self, status: Status) -> list[_Sample]:
        # A map that has had no error is there with 0, so that rate() sees its first one.
        with self._lock:
            errors = {_label(map_status.name): 0 for map_status in status.maps} | self._errors
        return [
            ("bpfkeeper_scrape_errors_total", (name,), float(number))
            for name, number in errors.items()
        ]


def _label(text: str) -> str:
    """Text that can be encoded: a name on bpffs may be no UTF-8, and has surrogates here then."""
    return text.encode("utf-8", "backslashreplace").decode()


def _map_samples(
    map_status: MapStatus, counts: Mapping[int, int], counted_by: Callable[[int], str]
) -> list[_Sample]:
    name = _label(map_status.name)
    info = (
        name,
        type_name(map_status.type),
        str(map_status.key_size),
        str(map_status.value_size),
        str(map_status.policy),
        counted_by(map_status.type),
    )
    samples: list[_Sample] = [
        ("bpfkeeper_map_info", info, 1.0),
        ("bpfkeeper_map_reuses_total", (name,), float(map_status.reuses)),
    ]
    samples += [
        # All reasons, so that rate() sees the first change.
        (
            "bpfkeeper_map_id_changes_total",
            (name, str(reason)),
            float(map_status.changes.get(reason, 0)),
        )
        for reason in MapIdChange
    ]
    capacity = map_status.max_entries
    if capacity > 0:  # 0: a type without the notion, such as sk_storage
        samples.append(("bpfkeeper_map_max_entries", (name,), float(capacity)))
    if map_status.id is None:
        return samples
    samples.append(("bpfkeeper_map_id", (name,), float(map_status.id)))
    # One map may stand in several slots.
    inner = [counts[id_] for id_ in {found.id for found in map_status.inner} if id_ in counts]
    if inner:
        samples.append(("bpfkeeper_map_inner_entries", (name,), float(sum(inner))))
    count = counts.get(map_status.id)
    if count is not None:
        used = max(float(count), 0.0)
        samples.append(("bpfkeeper_map_entries", (name,), used))
        if capacity > 0:
            samples.append(("bpfkeeper_map_fill_ratio", (name,), min(used / capacity, 1.0)))
    return samples


def _attachment_samples(attachment: AttachmentStatus) -> list[_Sample]:
    labels = (_label(attachment.object), _label(attachment.program), _label(attachment.target))
    return [("bpfkeeper_attachment_up", labels, float(attachment.up))]


def _heal_samples(status: Status) -> list[_Sample]:
    samples: list[_Sample] = [
        # All kinds, so that rate() sees the first time.
        (
            "bpfkeeper_heals_total",
            (_label(kind), result),
            float(status.heals.results.get(kind, {}).get(result, 0)),
        )
        for kind in status.drift
        for result in ("ok", "failed")
    ]
    samples.append(("bpfkeeper_heal_given_up", (), float(len(status.heals.given_up))))
    return samples


def _reload_samples(reloads: ReloadStatus) -> list[_Sample]:
    samples: list[_Sample] = [
        ("bpfkeeper_reloads_total", (str(result),), float(reloads.results.get(result, 0)))
        for result in ReloadResult
    ]
    last = reloads.last_success_timestamp_seconds
    if last is not None:
        samples.append(("bpfkeeper_last_reload_success_timestamp_seconds", (), float(last)))
    return samples


def _durations(reloads: ReloadStatus) -> Metric:
    buckets = reloads.duration_buckets or ((math.inf, 0),)
    return HistogramMetricFamily(
        "bpfkeeper_reload_duration_seconds",
        "How long reloads took, whatever came of them.",
        buckets=[
            ("+Inf" if bound == math.inf else str(float(bound)), float(number))
            for bound, number in buckets
        ],
        sum_value=float(reloads.duration_seconds_sum),
    )


def _families(samples: Iterable[_Sample]) -> Iterable[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for name, (documentation, labels) in _GAUGES.items():
        families[name] = GaugeMetricFamily(name, documentation, labels=labels)
    for name, (documentation, labels) in _COUNTERS.items():
        families[name] = CounterMetricFamily(name, documentation, labels=labels)
    for name, label_values, value in samples:
        families[name].add_metric(label_values, value)
    return families.values()
