"""The dashboard as it is shipped: its form, and that it can be read."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.prometheus.shipped import DASHBOARD, DASHBOARD_FILE, names, queries, rules, substituted

SCHEMA = json.loads((Path(__file__).parent / "dashboard.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
PANELS = DASHBOARD["panels"]
COLUMNS = 24


def mistakes(dashboard: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(dashboard)]


def test_it_is_of_the_form_that_grafana_reads() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert not mistakes(DASHBOARD)


def first(kind: str, dashboard: Any) -> Any:
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


WRONG: dict[str, Callable[[Any], object]] = {
    "a deprecated panel": lambda it: first("timeseries", it).update(type="graph"),
    "a misspelt option": lambda it: first("stat", it)["options"].update(colourMode="value"),
    "an unknown unit": lambda it: first("stat", it)["fieldConfig"]["defaults"].update(unit="B"),
    "a fixed data source": lambda it: first("table", it)["datasource"].update(uid="abc"),
    "no description": lambda it: first("bargauge", it).pop("description"),
    "a range in a table": lambda it: first("table", it)["targets"][0].update(range=True),
    "too wide": lambda it: first("stat", it)["gridPos"].update(w=25),
    "an old version": lambda it: it.update(schemaVersion=16),
    "thresholds without a base": lambda it: first("stat", it)["fieldConfig"]["defaults"].update(
        thresholds={"mode": "absolute", "steps": [{"color": "red", "value": 1}]}
    ),
    "a transformation that there is not": lambda it: first("table", it)["transformations"][
        0
    ].update(id="mingle"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_grafana_would_not_read_so_is_refused(wrong: str) -> None:
    dashboard = copy.deepcopy(DASHBOARD)
    WRONG[wrong](dashboard)
    assert mistakes(dashboard)


def test_links_to_it_stay() -> None:
    assert (DASHBOARD["uid"], DASHBOARD["id"]) == ("bpfkeeperd", None)


def test_it_is_written_as_git_can_compare() -> None:
    text = json.dumps(DASHBOARD, indent=2, ensure_ascii=False)
    assert DASHBOARD_FILE.read_text() == f"{text}\n"


def test_each_panel_has_a_number_of_its_own() -> None:
    numbers = [panel["id"] for panel in PANELS]
    assert len(set(numbers)) == len(numbers)
    for panel in PANELS:
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(letters)) == len(letters)


def test_panels_fill_their_lines_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        columns = range(place["x"], place["x"] + place["w"])
        for cell in itertools.product(range(place["y"], place["y"] + place["h"]), columns):
            assert cell not in taken, f"{panel['title']} is over {taken[cell]}"
            taken[cell] = panel["title"]
    lines = max(line for line, _ in taken) + 1
    assert len(taken) == lines * COLUMNS, "there are gaps"


def test_panels_stand_below_their_row() -> None:
    tops = [panel["gridPos"]["y"] for panel in PANELS]
    assert tops == sorted(tops) and PANELS[0]["type"] == "row"


def test_every_kind_of_panel_has_a_unit_where_it_shows_figures() -> None:
    for panel in PANELS:
        if panel["type"] not in ("row", "table"):
            assert "unit" in panel["fieldConfig"]["defaults"], panel["title"]


def test_each_bar_stands_for_events_of_its_own() -> None:
    """At the least step a window is four scrapes long, and would show one event four times."""
    for panel in PANELS:
        custom = panel.get("fieldConfig", {"defaults": {}})["defaults"].get("custom", {})
        assert (custom.get("drawStyle") == "bars") is ("interval" in panel), panel["title"]


def test_each_override_is_of_a_column_that_is_there() -> None:
    for panel in PANELS:
        if panel["type"] != "table":
            continue
        columns = set(panel["transformations"][-1]["options"]["renameByName"].values())
        changed = {one["matcher"]["options"] for one in panel["fieldConfig"]["overrides"]}
        sorted_by = {one["displayName"] for one in panel["options"]["sortBy"]}
        assert changed | sorted_by <= columns, panel["title"]


def test_thresholds_rise() -> None:
    for panel in PANELS:
        if panel["type"] != "row":
            steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]
            values = [step["value"] for step in steps]
            assert values == sorted(values), panel["title"]


def test_each_query_goes_by_the_variables() -> None:
    for query in queries():
        assert query.expr.count("{job=~") == len(query.expr.split("$job")) - 1
        assert query.expr.count("$instance") == query.expr.count("$job") > 0, query
        substituted(query.expr)


def test_it_does_without_the_rules() -> None:
    recorded = {rule.name for rule in rules() if not rule.alert}
    assert recorded
    for query in queries():
        assert not names(query.expr) & recorded, query
