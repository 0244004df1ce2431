"""What config/prometheus and config/grafana have: rules, panels, queries, and what these name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
PROMETHEUS = CONFIG / "prometheus"
CONFIG_FILE = PROMETHEUS / "prometheus.yml"
RULE_FILES = sorted(PROMETHEUS.glob("*.rules.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.test.yml"))
DASHBOARD_FILE = CONFIG / "grafana" / "bpfkeeperd.json"
DASHBOARD: Mapping[str, Any] = json.loads(DASHBOARD_FILE.read_text())

_SELECTOR = re.compile(
    r"(?<![\w:$])(?P<name>\w+:bpfkeeper_\w+:\w+|bpfkeeper_\w+|process_\w+|up)\b(\{[^{}]*\})?"
)
_VARIABLES = {
    "$job": ".*",
    "$instance": ".*",
    "$map": ".*",
    "$__rate_interval": "1m",
    "$__range": "1h",
}


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    expr: str
    alert: bool

    def __str__(self) -> str:
        return self.name

    @property
    def without_threshold(self) -> str:
        """What an alert compares: it has data whether there is an alarm or not."""
        expr = re.sub(r"\babsent\((.*)\)", r"\1", self.expr)
        return re.sub(r"\s(==|[<>])\s[\d.]+", "", expr)


@dataclass(frozen=True, slots=True)
class Query:
    """One query of the dashboard."""

    title: str
    """Of the panel, with the number of it and of the query."""
    panel: Mapping[str, Any]
    expr: str
    legend: str

    def __str__(self) -> str:
        return self.title

    @property
    def substituted(self) -> str:
        return substituted(self.expr)


def substituted(expr: str) -> str:
    """With every variable of the dashboard replaced."""
    for variable in sorted(_VARIABLES, key=len, reverse=True):
        expr = expr.replace(variable, _VARIABLES[variable])
    assert "$" not in expr, expr
    return expr


def selectors(expr: str) -> set[str]:
    """Every selector of instant or range vectors, without the range."""
    return {match[0] for match in _SELECTOR.finditer(expr)}


def names(expr: str) -> set[str]:
    """Every metric that is named."""
    return {match["name"] for match in _SELECTOR.finditer(expr)}


def rules() -> Sequence[Rule]:
    return [
        Rule(rule.get("alert") or rule["record"], rule["expr"], "alert" in rule)
        for file in RULE_FILES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


def queries() -> Sequence[Query]:
    return [
        Query(
            f"{panel['id']}{target['refId']} {panel['title']}",
            panel,
            target["expr"],
            target.get("legendFormat", ""),
        )
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def annotations() -> Mapping[str, str]:
    """Name to query."""
    found = DASHBOARD["annotations"]["list"]
    return {one["name"]: one["expr"] for one in found if "expr" in one}
