"""The rules as they are shipped, in the eyes of promtool, and their own tests."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bpfkeeperd.families import FAMILIES, Kind
from bpfkeeperd.maptypes import MAP_TYPES, Count
from tests.prometheus.server import promtool
from tests.prometheus.shipped import (
    CONFIG_FILE,
    PROMETHEUS,
    RULE_FILES,
    TEST_FILES,
    names,
    rules,
)

FULL_BY_DESIGN = {
    *("lru_hash", "lru_percpu_hash", "bloom_filter", "prog_array", "perf_event_array"),
    *("cgroup_array", "array_of_maps", "devmap", "cpumap", "xskmap", "reuseport_sockarray"),
}


def test_there_is_something_to_look_at() -> None:
    assert len(RULE_FILES) == 2 and len(TEST_FILES) == 2
    assert sum(rule.alert for rule in rules()) >= 15 and len(rules()) >= 25


def test_the_configuration_is_right() -> None:
    code, said = promtool("check", "config", CONFIG_FILE)
    assert code == 0, said
    config = yaml.safe_load(CONFIG_FILE.read_text())
    assert [PROMETHEUS / name for name in config["rule_files"]] == RULE_FILES[::-1]


@pytest.mark.parametrize("tls", [False, True])
def test_what_is_commented_out_in_it_is_right(tls: bool, tmp_path: Path) -> None:
    text = CONFIG_FILE.read_text()
    if tls:
        text = re.sub(r"(?m)^( +)#(?! )", r"\1", text)
        for path in re.findall(r"/etc/prometheus/\S+", text):
            (tmp_path / Path(path).name).touch()
        text = text.replace("/etc/prometheus/", f"{tmp_path}/")
    text = text.replace("- bpfkeeperd", f"- {PROMETHEUS}/bpfkeeperd")
    (tmp_path / "prometheus.yml").write_text(text)
    code, said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert code == 0, said
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    assert ("tls_config" in scrape) is tls


@pytest.mark.parametrize("file", RULE_FILES, ids=lambda file: file.name)
def test_rules_are_right(file: Path) -> None:
    code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", file)
    assert code == 0, said


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.name)
def test_rules_do_what_they_are_to(file: Path) -> None:
    code, said = promtool("test", "rules", file)
    assert code == 0, said


def cases() -> list[dict[str, Any]]:
    return [case for file in TEST_FILES for case in yaml.safe_load(file.read_text())["tests"]]


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires, quiet = set[str](), set[str]()
    for case in cases():
        for test in case.get("alert_rule_test", ()):
            (fires if test["exp_alerts"] else quiet).add(test["alertname"])
            for alert in test["exp_alerts"]:
                assert alert["exp_labels"]["severity"] in ("critical", "warning", "info")
                assert set(alert["exp_annotations"]) == {"summary", "description"}
    alerts = {rule.name for rule in rules() if rule.alert}
    assert (fires, quiet) == (alerts, alerts)


def test_each_recorded_rule_has_a_case() -> None:
    tested = {
        test["expr"]
        for case in cases()
        for test in case.get("promql_expr_test", ())
        if test["exp_samples"]
    }
    assert tested == {rule.name for rule in rules() if not rule.alert}


def test_what_is_named_is_a_metric_or_recorded() -> None:
    known = {family.name for family in FAMILIES if family.kind is not Kind.HISTOGRAM}
    known |= {rule.name for rule in rules() if not rule.alert}
    known |= {"up", "process_start_time_seconds"}
    for rule in rules():
        assert names(rule.expr) and names(rule.expr) <= known, rule


def test_fill_is_an_alarm_for_each_type_that_refuses_what_is_new() -> None:
    (expr,) = (rule.expr for rule in rules() if rule.name.endswith(":refusing"))
    (left_out,) = re.findall(r'type!~"(.*)"', expr)
    counted = {found.name for found in MAP_TYPES if found.count is not Count.NONE}
    assert {name for name in counted if re.fullmatch(left_out, name)} == FULL_BY_DESIGN
    assert counted - FULL_BY_DESIGN >= {"hash", "percpu_hash", "lpm_trie", "ringbuf", "queue"}
    # An array is counted where the manifest asks for that.
    assert all(re.fullmatch(left_out, name) for name in ("array", "percpu_array"))
