"""What wakes up those who follow a pin: this kernel's bpffs held against what the manual says."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpfkeeperd import follow, kernel
from bpfkeeperd.errors import KernelError
from bpfkeeperd.kernel import pathwatch

RENAME_EXCHANGE = 2
ARRAY = 2


@pytest.fixture
def two_maps() -> Iterator[tuple[int, int]]:
    maps = [kernel.map_create(ARRAY, name, 4, 8, 1) for name in ("first", "other")]
    yield maps[0], maps[1]
    for fd in maps:
        os.close(fd)


def exchange(source: Path, path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(source), -100, bytes(path), RENAME_EXCHANGE) == 0


def remount(pins: Path) -> None:
    """As somebody does under a daemon, which keeps the former bpffs from going."""
    subprocess.run(["umount", "-l", str(pins)], check=True)
    subprocess.run(["mount", "-t", "bpf", "bpf", str(pins)], check=True)


def replace_tree(pins: Path) -> None:
    """What is above the pin is moved away and made anew."""
    os.rename(pins / "far", pins / "moved")
    os.makedirs(pins / "far/off")


Way = Callable[[Path, Path, int], object]
"""Brings a map under a path, or takes it away: pin root, path of the pin, another map."""

WAYS: dict[str, Way] = {
    "unlink": lambda pins, path, other: path.unlink(),
    "rename over it": lambda pins, path, other: os.rename(pins / "other", path),
    "rename it away": lambda pins, path, other: os.rename(path, pins / "elsewhere"),
    "exchange": lambda pins, path, other: exchange(pins / "other", path),
    "remount": lambda pins, path, other: remount(pins),
    "replace its directories": lambda pins, path, other: replace_tree(pins),
}
NONE_ABOVE = ("replace its directories", "map")
BACK: dict[str, Way] = {
    "pin": lambda pins, path, other: kernel.pin(other, str(path)),
    "link": lambda pins, path, other: os.link(pins / "other", path),
    "rename": lambda pins, path, other: os.rename(pins / "other", path),
    "renameat2": lambda pins, path, other: kernel.rename(str(pins / "other"), str(path)),
    "rename from a mount namespace of its own": lambda pins, path, other: subprocess.run(
        ["unshare", "-m", "mv", str(pins / "other"), str(path)], check=True
    ),
}


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for way in WAYS for name in ("map", "far/off/map") if (way, name) != NONE_ABOVE],
)
def test_what_happens_to_a_pin_wakes_up(
    bpffs: Path, two_maps: tuple[int, int], way: str, name: str
) -> None:
    path = bpffs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (bpffs / "far").mkdir(exist_ok=True)
    kernel.pin(two_maps[0], str(path))
    kernel.pin(two_maps[1], str(bpffs / "other"))
    held = os.open(bpffs, os.O_RDONLY)
    with kernel.holding(held), kernel.PathWatch(str(path)) as watch:
        watch.arm()
        assert not watch.wait(0)
        WAYS[way](bpffs, path, two_maps[1])
        assert watch.wait(5)
        watch.arm()
        while watch.wait(0):  # a remount is two changes
            pass
        if way == "remount":  # the watch is on the new one
            path.parent.mkdir(parents=True, exist_ok=True)
            kernel.pin(two_maps[1], str(path))
            assert watch.wait(5)


@pytest.mark.parametrize("way", BACK)
def test_a_map_under_a_free_name_wakes_up(bpffs: Path, two_maps: tuple[int, int], way: str) -> None:
    path = bpffs / "map"
    kernel.pin(two_maps[1], str(bpffs / "other"))
    with kernel.PathWatch(str(path)) as watch:
        watch.arm()
        assert not watch.wait(0)
        BACK[way](bpffs, path, two_maps[1])
        assert watch.wait(5)


def test_directories_that_come_later(bpffs: Path, two_maps: tuple[int, int]) -> None:
    path = bpffs / "a/b/map"
    with kernel.PathWatch(str(path)) as watch:
        for directory in (bpffs / "a", bpffs / "a/b"):
            watch.arm()
            assert not watch.wait(0)
            directory.mkdir()
            assert watch.wait(5)
        watch.arm()
        assert not watch.wait(0)
        kernel.pin(two_maps[0], str(path))
        assert watch.wait(5)


def test_nothing_else_wakes_up(bpffs: Path, two_maps: tuple[int, int]) -> None:
    """Reading and writing the map, other names, mounts elsewhere."""
    path, elsewhere = bpffs / "map", bpffs / "elsewhere"
    kernel.pin(two_maps[0], str(path))
    with kernel.PathWatch(str(path)) as watch:
        watch.arm()
        found = kernel.pinned_map(str(path))
        assert found
        with kernel.holding(found[0]) as fd:
            kernel.map_update(fd, bytes(4), bytes(8))
        kernel.pin(two_maps[1], str(bpffs / "other"))
        (bpffs / "other").unlink()
        elsewhere.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(elsewhere)], check=True)
        subprocess.run(["umount", str(elsewhere)], check=True)
        assert not watch.wait(0.05)


def test_what_cannot_be_watched_is_looked_at(
    bpffs: Path, two_maps: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No inotify instance is left to this user: the other ID is found all the same."""
    monkeypatch.setattr(pathwatch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(pathwatch, "_FLAGS", -1)  # EINVAL
    path = bpffs / "map"
    kernel.pin(two_maps[0], str(path))
    kernel.pin(two_maps[1], str(bpffs / "other"))
    with kernel.PathWatch(str(path)) as watch:
        watch.arm()
        assert watch.wait(None) and watch.wait(10)
        assert not watch.wait(0.01)
    timer = threading.Timer(0.2, os.rename, (bpffs / "other", path))
    timer.start()
    found = follow.next_id(str(path), known=None, timeout_seconds=10)
    timer.join()
    assert found == kernel.map_info(two_maps[1]).id


def test_next_id(bpffs: Path, two_maps: tuple[int, int]) -> None:
    path = bpffs / "map"
    first, other = (kernel.map_info(fd).id for fd in two_maps)
    assert follow.next_id(str(path), known=None, timeout_seconds=0) is None
    kernel.pin(two_maps[0], str(path))
    assert follow.next_id(str(path), known=None, timeout_seconds=0.05) is None
    assert follow.next_id(str(path), known=first, timeout_seconds=0) is None
    assert follow.next_id(str(path), known=other, timeout_seconds=0) == first
    path.unlink()
    assert follow.next_id(str(path), known=first, timeout_seconds=0.05) is None
    kernel.pin(two_maps[1], str(path))
    assert follow.next_id(str(path), known=first, timeout_seconds=None) == other


def test_a_pin_that_is_gone_or_restored_is_no_other_id(
    bpffs: Path, two_maps: tuple[int, int]
) -> None:
    path = bpffs / "map"
    kernel.pin(two_maps[0], str(path))
    found: list[int | None] = []

    def wait() -> None:
        found.append(follow.next_id(str(path), known=None, timeout_seconds=None))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    for fd in two_maps:
        time.sleep(0.1)
        path.unlink()
        time.sleep(0.1)
        assert found == []
        kernel.pin(fd, str(path))
    waiting.join(10)
    assert found == [kernel.map_info(two_maps[1]).id]


def test_a_reader_without_rights_waits_where_it_may_open_the_pin(
    bpffs: Path, two_maps: tuple[int, int]
) -> None:
    """No capability is needed: not for the events, not to open a pin whose mode allows it."""
    path = bpffs / "map"
    kernel.pin(two_maps[0], str(path))
    os.chmod(path, 0o644)
    code = (
        "import sys; from bpfkeeperd.follow import next_id;"
        "print(next_id(sys.argv[1], known=None, timeout_seconds=0))"
        "; print(next_id(sys.argv[1], known=0, timeout_seconds=0))"
    )
    done = subprocess.run(
        [
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
            "--bounding-set=-all,+dac_read_search", "--no-new-privs",
            sys.executable, "-c", code, str(path),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (
        ["None", str(kernel.map_info(two_maps[0]).id)],
        "",
    )


def test_what_is_no_map_is_told(bpffs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KernelError, match=r"cannot open the pin .*file"):
        follow.next_id(str(tmp_path / "file"), known=None, timeout_seconds=0)
