"""A real Prometheus with the shipped rules scrapes the daemon: each rule and each query of the
dashboard finds what it asks for."""

import math
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bpfkeeperd import kernel
from tests.conftest import BuildObject, child_cgroup, make_places, mounted_bpffs
from tests.machine import inside_cgroup, send_datagrams
from tests.prometheus.server import Prometheus, Sample, promtool
from tests.prometheus.shipped import (
    CONFIG_FILE,
    DASHBOARD,
    PROMETHEUS,
    Query,
    Rule,
    annotations,
    names,
    queries,
    rules,
    selectors,
    substituted,
)
from tests.scenario import World
from tests.system.process import WAIT_SECONDS, DaemonProcess

SCRAPED_WELL = "min_over_time(up[3s]) == 1 and count_over_time(up[3s]) > 4"
"""A scrape that takes longer than the interval is a failed one, after which there are no series."""
ACTIVE = {
    "BpfkeeperMapFilling",
    "BpfkeeperMapAlmostFull",
    "BpfkeeperMapFullSoon",
    "BpfkeeperMapReplaced",
    "BpfkeeperMapRecreated",
    "BpfkeeperReloadFailed",
    "BpfkeeperAttachmentDown",
    "BpfkeeperDrift",
}
"""Alerts that what happens here sets off, or will if it stays so."""
OF_THE_MACHINE = {
    "BpfkeeperMapIdsGivenOutFast",
    "BpfkeeperMapIdsEnding",
    "BpfkeeperObservedLeftOut",
}
"""What others do on it can set them off at any time."""
NOT_NEEDED = set[str]()
"""Metrics that neither a rule nor the dashboard shows."""
MANIFEST = """
metrics: {listen: "127.0.0.1:0", observe: all, program_statistics: true}
maps:
  counts: {on_mismatch: recreate}
  full: {type: hash, key: u32, value: u64, max_entries: 10}
  taken: {type: hash, key: u32, value: u64, max_entries: 10}
  recent: {type: lru_hash, key: u32, value: u64, max_entries: 10}
  numbers: {type: array, key: u32, value: u64, max_entries: 8, count: nonzero}
  records: {type: ringbuf, max_entries: 4096}
  seen: {type: bloom_filter, value: u32, max_entries: 100}
  tables:
    type: array_of_maps
    max_entries: 4
    inner: {type: hash, key: u32, value: u64, max_entries: 4}
    entries: [{key: 0, value: table}]
  table: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 1}]}
objects:
  one:
    file: one.bpf.o
    pin_maps: [counts]
    programs: {count: {attach: [{cgroup: CGROUP}]}}
  two:
    file: two.bpf.o
    pin_maps: {counts: other_counts}
    programs: {count: {attach: [{cgroup: CGROUP/short_lived}]}}
"""


@dataclass(frozen=True, slots=True)
class Scene:
    prometheus: Prometheus
    at: float
    """When all had happened, and been scraped for a while."""
    scrape: str

    def query(self, expr: str) -> Sequence[Sample]:
        return self.prometheus.query(expr, self.at)

    def has_data(self, expr: str) -> None:
        samples = self.query(expr)
        assert samples, f"nothing: {expr}"
        figures = [sample for sample in samples if not math.isnan(sample.value)]
        assert figures, f"no figures: {expr}"


def send(world: World) -> None:
    with inside_cgroup(world.cgroup):
        send_datagrams(20)


def happen(world: World, daemon: DaemonProcess) -> None:
    """All that there is something to be said of."""
    send(world)
    assert daemon.reload("--force").returncode == 0
    world.put("one", ENTRIES=32)
    daemon.hup()
    manifest = world.manifest_file.read_text()
    world.manifest_file.write_text("version: none\n")
    daemon.hup()
    world.manifest_file.write_text(manifest)
    world.put("two", REFUSED=1)
    daemon.hup()
    (world.cgroup / "short_lived").rmdir()
    taken = world.pins / "taken"
    with kernel.holding(kernel.map_create(1, "taken", 4, 8, 10)) as fd:
        taken.unlink()
        kernel.pin(fd, str(taken))
    found = kernel.pinned_map(str(world.pins / "full"))
    assert found
    with kernel.holding(found[0]) as fd:
        for key in range(10):
            kernel.map_update(fd, key.to_bytes(4, "little"), bytes(8))
    send(world)


def configured(daemon: DaemonProcess, directory: Path) -> Path:
    """The shipped configuration, for this daemon and in a hurry."""
    config = yaml.safe_load(CONFIG_FILE.read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    (address,) = re.findall(r"^http://([^/]+)/", daemon.metrics_url)
    config["scrape_configs"][0]["static_configs"] = [{"targets": [address]}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def scraped_well(prometheus: Prometheus) -> float:
    """A Unix time before which some seconds of scrapes went well, all of them after the call."""
    began = time.time()
    while True:
        at = time.time()
        if at > began + 3 and prometheus.query(SCRAPED_WELL, at):
            return at
        assert at < began + WAIT_SECONDS, f"never scraped well:\n{prometheus.log}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def scene(build_object: BuildObject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        mounted_bpffs(directory) as pins,
        child_cgroup() as cgroup,
    ):
        make_places(directory, monkeypatch)
        world = World(directory, pins, cgroup, build_object)
        (cgroup / "short_lived").mkdir()
        world.put("one")
        world.put("two")
        world.write(MANIFEST)
        with kernel.holding(kernel.map_create(1, "outside", 4, 8, 4)) as fd:
            kernel.pin(fd, str(pins / "outside"))
        with DaemonProcess(world, look_seconds=0.2) as daemon:
            daemon.wait_ready()
            with Prometheus(configured(daemon, directory), directory) as prometheus:
                prometheus.wait_ready()
                scraped_well(prometheus)
                happen(world, daemon)
                at = scraped_well(prometheus)
                with urllib.request.urlopen(daemon.metrics_url) as answer:
                    yield Scene(prometheus, at, answer.read().decode())


@pytest.mark.parametrize("rule", rules(), ids=str)
def test_each_rule_has_data(scene: Scene, rule: Rule) -> None:
    for selector in selectors(rule.expr):
        scene.has_data(selector)
    scene.has_data(rule.without_threshold if rule.alert else rule.name)


def test_each_rule_is_evaluated_without_an_error(scene: Scene) -> None:
    found = [rule for group in scene.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert sorted(rule["name"] for rule in found) == sorted(rule.name for rule in rules())
    assert {(rule["health"], rule.get("lastError", "")) for rule in found} == {("ok", "")}


def test_alerts_fire_or_are_about_to(scene: Scene) -> None:
    found = [sample.labels for sample in scene.query("ALERTS")]
    assert {labels["alertname"] for labels in found} - OF_THE_MACHINE == ACTIVE
    (replaced,) = (labels for labels in found if labels["alertname"] == "BpfkeeperMapReplaced")
    assert (replaced["alertstate"], replaced["map"]) == ("firing", "taken")
    (down,) = (labels for labels in found if labels["alertname"] == "BpfkeeperAttachmentDown")
    assert (down["alertstate"], down["object"]) == ("pending", "two")


@pytest.mark.parametrize("query", queries(), ids=str)
def test_each_query_of_the_dashboard_has_data(scene: Scene, query: Query) -> None:
    scene.has_data(query.substituted)
    samples = scene.query(query.substituted)
    labels = {label for sample in samples for label in sample.labels}
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels


def test_tables_name_what_is_there(scene: Scene) -> None:
    """Columns that are renamed, put in order or hidden are among those that the queries make."""
    tables = [panel for panel in DASHBOARD["panels"] if panel["type"] == "table"]
    assert len(tables) >= 4
    for panel in tables:
        found = {"Time"}
        for target in panel["targets"]:
            found.add(f"Value #{target['refId']}")
            for sample in scene.query(substituted(target["expr"])):
                found |= set(sample.labels)
        options = panel["transformations"][-1]["options"]
        for part in ("renameByName", "indexByName", "excludeByName"):
            assert set(options[part]) <= found, panel["title"]
        shown = {*options["indexByName"], *options["excludeByName"]}
        assert found == shown, f"{panel['title']} shows columns that nobody named"


@pytest.mark.parametrize("name", annotations())
def test_annotations_have_data(scene: Scene, name: str) -> None:
    scene.has_data(substituted(annotations()[name]))


def test_variables_have_values(scene: Scene) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] != "query":
            continue
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert query, variable
        path = f"label/{query[2]}/values"
        found = scene.prometheus.get(path, **{"match[]": substituted(query[1])})
        assert found, variable["name"]


def test_each_metric_is_shown_or_said_not_to_be(scene: Scene) -> None:
    scraped = set(re.findall(r"(?m)^(bpfkeeper_\w+)", scene.scrape))
    exprs = [rule.expr for rule in rules()] + [query.expr for query in queries()]
    named = {name for expr in [*exprs, *annotations().values()] for name in names(expr)}
    assert scraped - named == NOT_NEEDED
    assert {name for name in named if name.startswith("bpfkeeper_")} <= scraped


def test_promtool_has_nothing_to_say_of_a_scrape(scene: Scene) -> None:
    assert promtool("check", "metrics", text=scene.scrape) == (0, "")
