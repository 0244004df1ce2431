"""The text of a scrape, held against what prometheus_client writes and reads."""

import math

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bpfkeeperd.exposition import block, escape, exposition, histogram, labels, number

NAMES = ["größe", 'a"b', "a\\b", "a\nb", "a\\nb", "{}", "日本語", "a b", "a\rb", "\U0001f41d", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_label_as_prometheus_client_writes_it(name: str) -> None:
    registry = CollectorRegistry()
    Gauge("bpfkeeper_map_id", "help", ["map"], registry=registry).labels(name).set(1)
    line = f"bpfkeeper_map_id{labels(('map',), (name,))} 1.0"
    assert line in generate_latest(registry).decode().split("\n")


def test_no_labels() -> None:
    assert labels((), ()) == ""


def test_bytes_that_are_no_text() -> None:
    assert escape("a\udcff") == r"a\\udcff"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2**63, "9223372036854775808"),
        (0.25, "0.25"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
        (True, "1.0"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
    assert math.isnan(value) or float(text.replace("Inf", "inf")) == value


def test_what_is_no_number() -> None:
    with pytest.raises((TypeError, ValueError)):
        number("many")  # type: ignore[arg-type]


def test_families_stand_together_and_once() -> None:
    """Of several parts, too; families without samples are not there."""
    first = {"map_id": block("map_id", ['{map="a"} 1']), "kernel_maps": ""}
    second = {"map_id": block("map_id", ['{map="b"} 2']), "drift": block("drift", [])}
    text = exposition(first, second)
    assert text.splitlines()[2:] == ['bpfkeeper_map_id{map="a"} 1', 'bpfkeeper_map_id{map="b"} 2']
    (family,) = text_string_to_metric_families(text)
    assert (family.name, family.type, len(family.samples)) == ("bpfkeeper_map_id", "gauge", 2)


def test_a_histogram() -> None:
    lines = histogram(((0.1, 1), (math.inf, 4)), 1.75)
    text = exposition({"reload_duration_seconds": block("reload_duration_seconds", lines)})
    (family,) = text_string_to_metric_families(text)
    assert family.type == "histogram"
    assert [(s.name.rpartition("_")[2], s.labels, s.value) for s in family.samples] == [
        ("bucket", {"le": "0.1"}, 1),
        ("bucket", {"le": "+Inf"}, 4),
        ("count", {}, 4),
        ("sum", {}, 1.75),
    ]
