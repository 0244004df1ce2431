"""The metrics of a running daemon, held against what the kernel says."""

import socket
import subprocess
import time

from bpfkeeperd import kernel
from tests.machine import counts_hashes_at_once, inside_cgroup, send_datagrams
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, WAIT_SECONDS, DaemonProcess


def prepare(world: World) -> None:
    world.put("one")
    world.write_counter("one", extra=METRICS)


def up(world: World) -> str:
    labels = f'object="one",program="count",target="cgroup:{world.cgroup}"'
    return f"bpfkeeper_attachment_up{{{labels}}}"


def wait_for(daemon: DaemonProcess, sample: str, value: float) -> dict[str, float]:
    """A scrape in which a sample has this value."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (metrics := daemon.metrics()).get(sample) != value:
        assert time.monotonic() < deadline, f"{sample} is {metrics.get(sample)}, not {value}"
        time.sleep(0.05)
    return metrics


def counted(daemon: DaemonProcess, label: str, entries: int) -> dict[str, float]:
    """A scrape with so many entries of a hash: the next one, where the kernel tells that."""
    sample = f"bpfkeeper_map_entries{label}"
    if not counts_hashes_at_once():
        return wait_for(daemon, sample, entries)
    metrics = daemon.metrics()
    assert metrics[sample] == entries
    return metrics


def test_maps_as_the_kernel_has_them(world: World, start: Start) -> None:
    prepare(world)
    daemon = start()
    label = '{map="counts"}'
    metrics = counted(daemon, label, 0)
    assert metrics[f"bpfkeeper_map_id{label}"] == world.map_id()
    assert metrics[f"bpfkeeper_map_max_entries{label}"] == 16
    (info,) = (sample for sample in metrics if sample.startswith("bpfkeeper_map_info"))
    for text in ('type="hash"', 'key_size="4"', 'value_size="16"', 'policy="fail"'):
        assert text in info

    found = kernel.pinned_map(str(world.pins / "counts"))
    assert found
    with kernel.holding(found[0]) as fd:
        for entries in range(1, 17):
            kernel.map_update(fd, entries.to_bytes(4, "little"), bytes(16))
            if entries in (1, 8, 16):
                metrics = counted(daemon, label, entries)
                assert metrics[f"bpfkeeper_map_fill_ratio{label}"] == entries / 16
        kernel.map_delete(fd, (3).to_bytes(4, "little"))
    counted(daemon, label, 15)


def test_reloads_are_counted(world: World, start: Start) -> None:
    prepare(world)
    began = time.time()
    daemon = start()
    for step in (2, 3, 4):
        world.put("one", STEP=step)
        daemon.hup()
    metrics = daemon.metrics()
    assert metrics['bpfkeeper_reloads_total{result="ok"}'] == 4
    assert metrics['bpfkeeper_map_reuses_total{map="counts"}'] == 3
    assert metrics["bpfkeeper_reload_duration_seconds_count"] == 4
    assert 0 < metrics["bpfkeeper_reload_duration_seconds_sum"] < 10
    last_good = metrics["bpfkeeper_last_reload_success_timestamp_seconds"]
    assert began < last_good < time.time()

    world.put("one", REFUSED=1)
    daemon.hup()
    metrics = daemon.metrics()
    assert metrics['bpfkeeper_reloads_total{result="failed"}'] == 1
    assert metrics["bpfkeeper_last_reload_success_timestamp_seconds"] == last_good
    assert metrics['bpfkeeper_last_reload_result{result="failed"}'] == 1
    assert metrics['bpfkeeper_last_reload_result{result="ok"}'] == 0


def test_recreated_map_is_counted(world: World, start: Start) -> None:
    world.put("one")
    policy = f"maps: {{counts: {{on_mismatch: recreate}}}}\n{METRICS}"
    world.write_counter("one", extra=policy)
    daemon = start()
    world.put("one", ENTRIES=32)
    daemon.hup()
    metrics = daemon.metrics()
    assert metrics['bpfkeeper_map_id_changes_total{map="counts",reason="recreated"}'] == 1
    assert metrics['bpfkeeper_map_id{map="counts"}'] == world.map_id()
    assert metrics['bpfkeeper_map_max_entries{map="counts"}'] == 32
    daemon.wait_log("map counts has a new ID")


def test_detached_link_is_seen_and_left_to_a_reload(world: World, start: Start) -> None:
    prepare(world)
    world.write_counter("one", extra=f"{METRICS}\nheal: false")
    daemon = start(look_seconds=0.2)
    metrics = daemon.metrics()
    assert metrics[up(world)] == 1
    assert not any(metrics[sample] for sample in metrics if sample.startswith("bpfkeeper_drift"))

    ((link_id, _),) = world.link_ids().values()
    subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
    metrics = wait_for(daemon, up(world), 0)
    assert metrics['bpfkeeper_drift{kind="attachment_missing"}'] == 1
    daemon.wait_log("drift from the manifest: attachment_missing 1")
    time.sleep(0.7)
    assert daemon.log.count("drift from the manifest") == 1, "said again and again"

    daemon.hup()
    metrics = daemon.metrics()
    assert metrics[up(world)] == 1
    assert metrics['bpfkeeper_drift{kind="attachment_missing"}'] == 0
    with inside_cgroup(world.cgroup):
        send_datagrams(2)
    assert world.events() == (2, 2)


def test_exchanged_pin_is_seen(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(look_seconds=0.2)
    old = world.map_id()
    with kernel.holding(kernel.map_create(1, "counts", 4, 16, 16)) as fd:
        (world.pins / "counts").unlink()
        kernel.pin(fd, str(world.pins / "counts"))
    new = world.map_id()
    assert new and new != old
    metrics = wait_for(daemon, 'bpfkeeper_map_id{map="counts"}', new)
    assert metrics['bpfkeeper_map_id_changes_total{map="counts",reason="replaced"}'] == 1
    daemon.wait_log(f"map counts has a new ID: {old} became {new} (replaced)")
    daemon.hup()
    with inside_cgroup(world.cgroup):
        send_datagrams(2)
    assert world.events() == (2, 2), "the pin is the truth"


def test_port_that_is_taken_is_waited_for(world: World, start: Start) -> None:
    """Keeping maps is worth more than showing them."""
    world.put("one")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        world.write_counter("one", extra=f'metrics: {{listen: "127.0.0.1:{port}"}}')
        daemon = start(look_seconds=0.2)
        daemon.wait_log(f"cannot listen on 127.0.0.1:{port}: Address already in use")
        time.sleep(0.5)
        assert daemon.log.count("cannot listen on") == 1, "said again and again"
    daemon.wait_log("metrics are served at ")
    assert daemon.metrics()[up(world)] == 1


def test_bpffs_that_goes_does_not_end_the_daemon(world: World, start: Start) -> None:
    prepare(world)
    daemon = start(look_seconds=0.2)
    map_id = world.map_id()
    subprocess.run(["umount", "-l", str(world.pins)], check=True)
    daemon.wait_log("is not on a bpffs: mount -t bpf bpf")
    subprocess.run(["mount", "-t", "bpf", "bpf", str(world.pins)], check=True)
    daemon.wait_log("the pin root can be read again")
    assert daemon.reload().returncode == 0
    assert world.map_id() == map_id
