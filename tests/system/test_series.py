"""Which series a daemon shows, and that they are there whatever happens meanwhile."""

import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bpfkeeperd import kernel
from bpfkeeperd.families import FAMILIES, PREFIX
from bpfkeeperd.mapflags import NO_PREALLOC
from bpfkeeperd.maptypes import HASH, LPM_TRIE
from tests.machine import counts_hashes_at_once, inside_cgroup, send_datagrams
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import ROOT, WAIT_SECONDS, DaemonProcess, cli, environment

SOCKET_FILTER = 1
RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")
EVERYTHING = """
metrics: {listen: "127.0.0.1:0", observe: all, program_statistics: true}
defaults: {on_mismatch: recreate}
maps:
  settings: {type: array, key: u32, value: u64, max_entries: 8, count: nonzero, entries: [*]}
  inner: {type: hash, key: u32, value: u64, max_entries: 4, entries: [{key: 1, value: 1}]}
  outer: {type: array_of_maps, inner: inner, max_entries: 2, entries: [{key: 0, value: inner}]}
""".replace("*", "{key: 3, value: 1}")


def names(metrics: dict[str, float]) -> set[str]:
    """Of the families, as the table has them."""
    found = {re.split(r"[{]", sample)[0] for sample in metrics}
    found = {re.sub(r"(_seconds)_(bucket|sum|count)$", r"\1", name) for name in found}
    return {name for name in found if name.startswith(PREFIX)}


def wait_for(daemon: DaemonProcess, sample: str) -> dict[str, float]:
    """A scrape that has this sample."""
    deadline = time.monotonic() + WAIT_SECONDS
    while sample not in (metrics := daemon.metrics()):
        assert time.monotonic() < deadline, f"there is no {sample}: {sorted(metrics)}"
        time.sleep(0.05)
    return metrics


def tells_verified_instructions() -> bool:
    with kernel.holding(kernel.prog_load(SOCKET_FILTER, "filter", RETURN_0)) as fd:
        return kernel.program_stats(fd).verified > 0


def trie_of_others() -> int:
    """A map with one entry, of a type that every kernel counts in a scrape."""
    fd = kernel.map_create(LPM_TRIE, "theirs", 8, 8, 10, flags=NO_PREALLOC)
    kernel.map_update(fd, bytes(8), bytes(8))
    return fd


def test_every_family_of_the_table_is_in_a_scrape_and_no_other(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    with kernel.holding(trie_of_others()):
        daemon = start()
        world.put("one", ENTRIES=32)
        daemon.hup()
        metrics = wait_for(daemon, 'bpfkeeper_map_count_age_seconds{map="settings"}')
        metrics |= wait_for(daemon, 'bpfkeeper_program_memory_bytes{object="one",program="count"}')
        metrics |= wait_for(daemon, 'bpfkeeper_map_inner_entries{map="outer"}')
    metrics |= wait_for(daemon, "bpfkeeper_kernel_map_ids_exact")
    expected = {family.name for family in FAMILIES}
    if not tells_verified_instructions():
        expected.remove("bpfkeeper_program_verified_instructions")
    assert names(metrics) == expected
    assert {"process_resident_memory_bytes", "process_open_fds"} <= metrics.keys()
    with urllib.request.urlopen(daemon.metrics_url, timeout=5) as answer:
        text = answer.read().decode()
    table = {family.name: family for family in FAMILIES}
    for found in text_string_to_metric_families(text):
        name = f"{found.name}_total" if found.type == "counter" else found.name
        if name.startswith(PREFIX):
            family = table[name]
            assert (found.type, found.documentation) == (family.kind, family.help)
            for sample in found.samples:
                assert set(sample.labels) - {"le"} == set(family.labels)


def test_what_is_counted_from_time_to_time(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    daemon = start()
    wait_for(daemon, 'bpfkeeper_map_count_age_seconds{map="settings"}')
    metrics = wait_for(daemon, 'bpfkeeper_map_inner_entries{map="outer"}')
    assert metrics['bpfkeeper_map_entries{map="settings"}'] == 1
    assert metrics['bpfkeeper_map_fill_ratio{map="settings"}'] == 1 / 8
    assert metrics['bpfkeeper_map_inner_entries{map="outer"}'] == 1
    (info,) = (name for name in metrics if name.startswith('bpfkeeper_map_info{map="settings"'))
    assert 'counted_by="nonzero"' in info
    path = world.pins / "settings"
    fd = kernel.pinned(str(path), kernel.PinKind.MAP)
    assert fd is not None
    with kernel.holding(fd):
        fields = Path(f"/proc/self/fdinfo/{fd}").read_text()
    (accounted,) = re.findall(r"memlock:\s+(\d+)", fields)
    assert metrics['bpfkeeper_map_memory_bytes{map="settings"}'] == int(accounted)


def test_which_version_serves_a_hook(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    before = time.time()
    daemon = start()
    program, up = (
        f'{{object="one",program="count"{target}}}'
        for target in ("", f',target="cgroup:{world.cgroup}"')
    )
    digests, tags = set(), set()
    for step in (2, 3):
        world.put("one", STEP=step)
        daemon.hup()
        with inside_cgroup(world.cgroup):
            send_datagrams(5)
        metrics = daemon.metrics()
        ((_, prog_id),) = world.link_ids().values()
        assert metrics[f"bpfkeeper_program_id{program}"] == prog_id
        (shown,) = (name for name in metrics if name.startswith("bpfkeeper_attachment_info"))
        found = re.search(r'hook="cgroup_skb/egress",digest="([^"]+)",tag="([0-9a-f]{16})"', shown)
        assert found and found[1] in str(os.listdir(f"{world.layout.objects}/one"))
        digests.add(found[1])
        tags.add(found[2])
        with kernel.holding(kernel.program_by_id(prog_id) or 0) as fd:
            assert kernel.program_info(fd).tag == found[2]
            verified = metrics.get(f"bpfkeeper_program_verified_instructions{program}", 0)
            assert verified == kernel.program_stats(fd).verified
        since = metrics[f"bpfkeeper_attachment_since_timestamp_seconds{up}"]
        assert before - 1 < since < time.time() + 1
        assert before - 1 < metrics[f"bpfkeeper_program_loaded_timestamp_seconds{program}"] <= since
        assert metrics[f"bpfkeeper_program_runs_total{program}"] == 5
        assert 0 < metrics[f"bpfkeeper_program_run_seconds_total{program}"] < 1
        assert metrics["bpfkeeper_program_statistics_enabled"] == 1
        before = since
    assert len(digests) == len(tags) == 2


def test_runs_are_counted_on_request_only(world: World, start: Start) -> None:
    """The request can come, and go, with a reload. Others on the machine may have them counted,
    too, which nobody can see; but who has holds a descriptor."""
    world.put("one")
    world.write_counter("one", extra=EVERYTHING.replace("true", "false"))
    daemon = start()
    runs = 'bpfkeeper_program_runs_total{object="one",program="count"}'

    def is_asked() -> bool:
        return "anon_inode:bpf-stats" in daemon.open_files()

    if kernel.statistics_enabled():
        pytest.skip("the machine counts runs of programs")
    assert not is_asked() and not daemon.metrics()["bpfkeeper_program_statistics_enabled"]
    assert daemon.metrics().get(runs) != 0, "what is not counted is no zero"
    world.write_counter("one", extra=EVERYTHING)
    daemon.hup()
    before = wait_for(daemon, runs)[runs]
    assert is_asked() and daemon.metrics()["bpfkeeper_program_statistics_enabled"]
    with inside_cgroup(world.cgroup):
        send_datagrams(3)
    assert daemon.metrics()[runs] == before + 3
    world.write_counter("one", extra=EVERYTHING.replace("true", "false"))
    daemon.hup()
    deadline = time.monotonic() + WAIT_SECONDS
    while daemon.metrics()["bpfkeeper_program_statistics_enabled"]:
        assert time.monotonic() < deadline
    assert not is_asked()
    assert daemon.metrics()[runs] >= before + 3, "what was counted is still there"


def test_maps_that_left_the_manifest_leave_the_scrape(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING.replace("observe: all, ", ""))
    daemon = start()
    assert any('map="settings"' in name for name in daemon.metrics())
    world.write_counter("one", extra='metrics: {listen: "127.0.0.1:0"}')
    daemon.hup()
    left = {name for name in daemon.metrics() if 'map="' in name and 'map="counts"' not in name}
    assert left == {'bpfkeeper_scrape_errors_total{map=""}'}
    assert not any("observed" in name for name in daemon.metrics())


# ---- maps of others ----


def test_maps_of_others(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    path = world.pins / "theirs"
    with kernel.holding(trie_of_others()) as fd:
        kernel.pin(fd, str(path))
        map_id = kernel.map_info(fd).id
    daemon = start()
    labels = f'{{name="theirs",type="lpm_trie",path="{path}"}}'
    metrics = daemon.metrics()
    assert metrics[f"bpfkeeper_observed_maps{labels}"] == 1
    assert metrics[f"bpfkeeper_observed_map_id{labels}"] == map_id
    assert metrics[f"bpfkeeper_observed_map_entries{labels}"] == 1
    assert metrics[f"bpfkeeper_observed_map_max_entries{labels}"] == 10
    assert metrics[f"bpfkeeper_observed_map_fill_ratio{labels}"] == 0.1
    assert metrics["bpfkeeper_observed_maps_left_out"] == 0
    kept = {f'name="{name}"' for name in ("counts", "settings", "inner", "outer")}
    mine = f'path="{world.pins}/'
    shown = [name for name in metrics if "observed_maps{" in name and mine in name]
    assert not any(name in line for line in shown for name in kept), "no map is shown twice"
    path.unlink()
    deadline = time.monotonic() + WAIT_SECONDS
    while f"bpfkeeper_observed_maps{labels}" in daemon.metrics():
        assert time.monotonic() < deadline


def test_the_series_of_others_have_an_end(world: World, start: Start) -> None:
    world.put("one")
    bounded = EVERYTHING.replace("observe: all", "observe: all, observe_max: 2")
    world.write_counter("one", extra=bounded)
    for number in range(3):
        with kernel.holding(kernel.map_create(HASH, "pinned", 4, 8, 10)) as fd:
            kernel.pin(fd, str(world.pins / f"pinned{number}"))
    with kernel.holding(kernel.map_create(HASH, "aaaa", 4, 8, 10)):
        metrics = start().metrics()
    shown = [name for name in metrics if name.startswith("bpfkeeper_observed_maps{")]
    assert len(shown) == 2 and metrics["bpfkeeper_observed_maps_left_out"] >= 1
    assert all('path=""' not in name for name in shown), "those that are pinned come first"


def test_a_daemon_without_a_descriptor_left_goes_on(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    daemon = start(look_seconds=0.1)
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    samples = set(daemon.metrics())
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (16, limits[1]))
    daemon.wait_log("cannot open pin root")
    daemon.signal(signal.SIGHUP)
    daemon.wait_log("manifest rejected")
    time.sleep(0.3)  # some looks
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    assert re.match(r"applied in \d+ ms: nothing done", daemon.hup())
    own = {name for name in samples if "observed" not in name and "scrape_errors" not in name}
    assert own <= set(daemon.metrics())


# ---- scrapes beside reloads ----

RELOADS = 1000
PACE_SECONDS = 0.1
ENOUGH = 20
"""Scrapes."""


@contextmanager
def scraping(url: str) -> Iterator[list[set[str]]]:
    """Ten scrapes a second; the samples' names of each."""
    seen: list[set[str]] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def scrape() -> None:
        try:
            while not stop.wait(PACE_SECONDS):
                with urllib.request.urlopen(url, timeout=10) as answer:
                    lines = answer.read().decode().splitlines()
                seen.append({line.rpartition(" ")[0] for line in lines if line[0] != "#"})
                errors = [line for line in lines if line.startswith("bpfkeeper_scrape_errors_tot")]
                assert all(line.endswith(" 0") for line in errors), errors
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def stable(samples: set[str]) -> set[str]:
    """Without digests and tags, which change with the objects, and what is measured later."""
    later = ["program_memory_bytes", "map_memory_bytes", "map_count_age", "last_id_change"]
    changing = "digest|tag"
    if not counts_hashes_at_once():
        later += ["map_entries", "map_fill_ratio"]
        changing += "|counted_by"
    shown = {re.sub(rf'({changing})="[^"]*"', r"\1", sample) for sample in samples}
    return {sample for sample in shown if not any(word in sample for word in later)}


@pytest.mark.parametrize(
    ("reloads", "entries"), [(RELOADS, (16, 16)), (100, (16, 32))], ids=["kept", "recreated"]
)
def test_no_series_is_missing_in_any_scrape(
    world: World, start: Start, reloads: int, entries: tuple[int, int]
) -> None:
    """Every reload loads another version, or even makes another map."""
    variants = [
        world.build("counter", STEP=step, ENTRIES=number).read_bytes()
        for step, number in enumerate(entries, start=1)
    ]
    world.put("one", STEP=2, ENTRIES=entries[1])
    everything = EVERYTHING.replace("observe: all, ", "").replace(", count: nonzero", "")
    world.write_counter("one", extra=everything)
    daemon = start()
    target = world.directory / "one.bpf.o"
    slow = ('map_memory_bytes{map="settings"}', 'map_inner_entries{map="outer"}')
    for sample in (*slow, "kernel_map_id_limit"):
        wait_for(daemon, PREFIX + sample)
    with scraping(daemon.metrics_url) as seen:
        number = 0
        while number < reloads or len(seen) < ENOUGH:
            staged = Path(f"{target}.new")
            staged.write_bytes(variants[number % 2])
            staged.rename(target)
            assert "applied in" in daemon.hup()
            number += 1
    assert all(stable(samples) == stable(seen[0]) for samples in seen), [
        stable(samples) ^ stable(seen[0]) for samples in seen if stable(samples) != stable(seen[0])
    ]
    metrics = daemon.metrics()
    assert metrics['bpfkeeper_reloads_total{result="ok"}'] == number + 1
    changes = metrics['bpfkeeper_map_id_changes_total{map="counts",reason="recreated"}']
    assert changes == (number if entries[0] != entries[1] else 0)


def test_scrapes_leave_nothing_behind(world: World, start: Start) -> None:
    """Of 2,000: no descriptor, no thread, no map or map ID, and no memory after the first ones."""
    world.put("one")
    world.write_counter("one", extra=EVERYTHING)
    daemon = start()
    wait_for(daemon, 'bpfkeeper_map_count_age_seconds{map="settings"}')
    daemon.wait_idle()

    def measured() -> tuple[int, int, int]:
        return daemon.descriptors(), daemon.threads(), len(world.everything())

    for _ in range(200):
        daemon.metrics()
    before, resident = measured(), daemon.rss_bytes()
    for _ in range(2000):
        daemon.metrics()
    world.wait(lambda: measured() <= before)  # the last connection may be open for a moment
    assert daemon.rss_bytes() - resident < 1 << 20


# ---- without a server ----


def test_a_textfile_follows_the_daemon(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra="metrics: {listen: none}")
    path = world.directory / "bpfkeeperd.prom"
    daemon = start(options=["--textfile", str(path)])

    def has(line: str) -> bool:
        return path.exists() and line in path.read_text().splitlines()

    world.wait(lambda: has('bpfkeeper_reloads_total{result="ok"} 1'))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "process_" not in path.read_text(), "node_exporter has its own"
    assert has(f'bpfkeeper_map_id{{map="counts"}} {world.map_id()}')
    daemon.hup()
    world.wait(lambda: has('bpfkeeper_reloads_total{result="ok"} 2'))
    assert daemon.stop() == 0
    assert [found.name for found in world.directory.glob("*.prom*")] == [path.name]


def test_a_textfile_that_makes_no_sense_is_refused_at_once(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    path = str(world.directory / "metrics.txt")
    for command in (["run"], ["metrics"]):
        done = cli(world, *command, "--textfile", path)
        assert done.returncode == 1
        assert "choose a name that ends in .prom" in done.stderr
    assert not world.link_ids()


def test_the_command_shows_what_the_daemon_shows(world: World, start: Start) -> None:
    world.put("one")
    world.write_counter("one", extra=EVERYTHING.replace("all", "kept").replace("true", "false"))
    daemon = start()
    wait_for(daemon, "bpfkeeper_kernel_map_id_limit")
    wait_for(daemon, 'bpfkeeper_program_memory_bytes{object="one",program="count"}')
    shown = wait_for(daemon, 'bpfkeeper_map_count_age_seconds{map="settings"}')
    printed = cli(world, "metrics")
    assert printed.returncode == 0 and not printed.stderr
    lines = [line for line in printed.stdout.splitlines() if not line.startswith("#")]
    samples = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert not samples.keys() - shown.keys()
    only_daemon = ("process_", "bpfkeeper_last_reload", "bpfkeeper_reload_duration")
    missing = shown.keys() - samples.keys()
    assert all(name.startswith(only_daemon) for name in missing), missing
    for name in ('map_entries{map="settings"}', 'map_id{map="counts"}', "kernel_map_id_limit"):
        assert samples[PREFIX + name] == shown[PREFIX + name]
    path = world.directory / "once.prom"
    assert cli(world, "metrics", "--textfile", str(path)).returncode == 0
    assert 'bpfkeeper_map_entries{map="settings"} 1' in path.read_text().splitlines()


def test_metrics_into_a_pipe_that_is_closed(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    assert cli(world, "apply").returncode == 0
    command = [sys.executable, "-m", "bpfkeeperd", "metrics", "-c", str(world.manifest_file)]
    done = subprocess.run(
        f"{' '.join(command)} | head -1",
        shell=True,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("# HELP bpfkeeper_") and "Traceback" not in done.stderr
