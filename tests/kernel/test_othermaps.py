"""The maps of others and where they are pinned, wherever that is."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from bpfkeeperd import kernel
from bpfkeeperd.entries import Manifest
from bpfkeeperd.instruments import Instruments
from bpfkeeperd.othermaps import LOOK_SECONDS, OtherMaps, map_pins, with_other_pins
from bpfkeeperd.state import Status
from tests.kernel.test_instruments import MAPS, measuring, samples
from tests.scenario import World


def test_maps_of_others_are_shown_on_request_only(world: World) -> None:
    """The request can come and go, and no descriptor is left for it."""

    def shown(instruments: Instruments) -> bool:
        return b"bpfkeeper_observed_maps{" in instruments.metrics.render()[0]

    manifest = Manifest(file="")
    with (
        kernel.holding(kernel.map_create(1, "theirs", 4, 4, 1)),
        Instruments(Status) as instruments,
    ):
        instruments.follow(manifest)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            instruments.follow(replace(manifest, observe_most=5))
            assert shown(instruments)
            instruments.follow(manifest)
            assert not shown(instruments)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_list_of_others_that_another_thread_closes(world: World) -> None:
    """Its descriptor may already be that of something else."""
    others = OtherMaps(world.layout.own)
    with kernel.holding(kernel.map_create(1, "one", 4, 4, 1)) as fd:
        map_id = kernel.map_info(fd).id
        assert map_id in {found.id for found in others.found(())}
        assert map_id not in {found.id for found in others.found({map_id})}
        others.close()
        assert list(others.found(())) == []


def test_pins_of_others_are_looked_for_now_and_then(world: World) -> None:
    """A pin is opened for that: not at each look of a daemon that has much to do."""
    path = world.pins / "one"
    with (
        kernel.holding(kernel.map_create(1, "one", 4, 4, 1)) as fd,
        OtherMaps(world.layout.own) as others,
    ):
        map_id = kernel.map_info(fd).id

        def shown(now: float) -> str:
            others.look_for_pins(now)
            return next(found.path for found in others.found(()) if found.id == map_id)

        assert shown(100) == ""
        kernel.pin(fd, str(path))
        assert shown(100 + LOOK_SECONDS - 0.1) == ""
        assert shown(100 + LOOK_SECONDS) == str(path)


def test_pins_anywhere(world: World) -> None:
    """In every bpffs, to some depth; not those of the keeper's own directory."""
    deep = world.pins / "a" / "b"
    deep.mkdir(parents=True)
    with kernel.holding(kernel.map_create(1, "one", 4, 4, 1)) as fd:
        map_id = kernel.map_info(fd).id
        for path in (world.pins / "one", deep / "two"):
            kernel.pin(fd, str(path))
        found = map_pins(world.layout.own)[map_id]
        assert found == (str(deep / "two"), str(world.pins / "one"))
    world.write("maps: {one: {type: hash, key: u32, value: u32, max_entries: 1}}")
    with world.keeper() as keeper:
        world.reload(keeper)
        (status,) = with_other_pins(keeper.status, world.layout.own).maps
        assert status.path == str(world.pins / "one")
        assert status.other_pins == (str(deep / "two"),)
        (deep / "two").unlink()
        (status,) = with_other_pins(keeper.status, world.layout.own).maps
        assert status.other_pins == ()


def pin_one(path: bytes) -> None:
    with kernel.holding(kernel.map_create(1, "theirs", 4, 4, 1)) as fd:
        kernel.pin(fd, os.fsdecode(path))


@contextmanager
def one_more_bpffs(path: bytes) -> Iterator[bytes]:
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_pins_at_paths_of_any_bytes_have_one_series_each(world: World) -> None:
    """Two of which look the same share one: there must not be two with the same labels."""
    world.write("metrics: {observe: all}")
    names = (
        b"\x80",
        b"\\udc80",
        b'q"',
        b"new\nline",
        b"c\rr",
        b"back\\",
        b"\xe2\x80\xa8",
        b"x" * 255,
    )
    for name in names:
        pin_one(os.fsencode(world.pins) + b"/" + name)
    os.symlink(world.pins, world.pins / "loop")
    mount = os.fsencode(world.directory) + b"/c\rarriage \xff"
    with (
        world.keeper() as keeper,
        one_more_bpffs(mount),
        one_more_bpffs(mount + b"/within"),
        Instruments(lambda: keeper.status) as instruments,
    ):
        pin_one(mount + b"/within/one")
        world.reload(keeper)
        instruments.follow(keeper.manifest)
        text = instruments.metrics.render()[0].decode()
        found = [
            sample.labels["path"]
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "bpfkeeper_observed_maps"
            and sample.labels["path"].startswith(f"{world.directory}/")
        ]
        pins = map_pins(world.layout.own).values()
        within = [paths for paths in pins if paths[0].endswith("/within/one")]
    assert len(found) == len(set(found)) == len(names), "a pair that looks the same, and one more"
    assert [len(paths) for paths in within] == [1], "it was found from two mounts"


def test_a_bpffs_below_another_is_not_there(world: World) -> None:
    path = os.fsencode(world.directory / "twice")
    with one_more_bpffs(path):
        pin_one(path + b"/below")
        with one_more_bpffs(path):
            pin_one(path + b"/above")
            places = [place for place in kernel.bpffs_mounts() if os.fsencode(place) == path]
            found = [one for paths in map_pins(world.layout.own).values() for one in paths]
    assert len(places) == 1
    assert os.fsdecode(path + b"/above") in found and os.fsdecode(path + b"/below") not in found


def test_a_scrape_while_maps_of_others_are_wanted_no_more(world: World) -> None:
    """It goes on with what it began to read."""
    with measuring(world, f"metrics: {{observe: all}}\n{MAPS}") as (keeper, instruments):
        before = len(os.listdir("/proc/self/fd"))
        manifests = [
            replace(keeper.manifest, observe_most=most, program_statistics=bool(most))
            for most in (None, 10)
        ]
        stop = threading.Event()

        def toggle() -> None:
            while not stop.is_set():
                for manifest in manifests:
                    instruments.follow(manifest)

        thread = threading.Thread(target=toggle)
        thread.start()
        try:
            errors = [samples(instruments)["scrape_errors_total "] for _ in range(100)]
        finally:
            stop.set()
            thread.join()
        instruments.follow(manifests[0])
        assert not any(errors)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_what_is_mounted_among_the_pins_is_not_walked(world: World) -> None:
    """It may be a large tree, and nothing can be pinned there."""
    foreign = world.pins / "foreign"
    foreign.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(foreign)], check=True)
    try:
        (foreign / "deep" / "deeper").mkdir(parents=True)
        (foreign / "file").touch()
        pins = kernel.scan(str(world.pins), 8, kernel.PinKind.MAP)
    finally:
        subprocess.run(["umount", str(foreign)], check=True)
    assert not [pin.path for pin in pins if pin.path[0] == "foreign"]


def test_a_prog_array_of_the_keepers_own_is_no_pin_to_show(world: World) -> None:
    own = f"{world.layout.own}/somewhere"
    os.makedirs(own, mode=0o700)
    with kernel.holding(kernel.map_create(1, "one", 4, 4, 1)) as fd:
        map_id = kernel.map_info(fd).id
        kernel.pin(fd, f"{own}/one")
        assert map_id not in map_pins(world.layout.own)
        assert map_pins("/elsewhere")[map_id] == (f"{own}/one",)
