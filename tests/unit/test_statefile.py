"""The state file: it comes back as it was written, and losing it breaks nothing."""

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfkeeperd.churn import MapRecord, Memory, Withheld
from bpfkeeperd.errors import BusyError, KeeperError
from bpfkeeperd.state import LastChange, MapIdChange
from bpfkeeperd.statefile import lock_state, read_state, state_path, write_state

MEMORY = Memory(
    "5a1f",
    {
        "flows": MapRecord(7, made=True, changes={MapIdChange.LOST: 2, MapIdChange.REBOOT: 1}),
        "settings": MapRecord(9),
    },
    {"one": Withheld("5f3a", "its run count did not move")},
)

TIMES = st.floats(0, 1 << 40)
RECORDS = st.builds(
    MapRecord,
    st.integers(1, 2**31 - 2),
    st.booleans(),
    st.dictionaries(st.sampled_from(MapIdChange), st.integers(0, 1 << 40)),
    TIMES,
    st.none() | st.builds(LastChange, st.sampled_from(MapIdChange), st.integers(0, 9), TIMES),
    st.integers(0, 2**31 - 2),
)
MEMORIES = st.builds(
    Memory,
    st.text(),
    st.dictionaries(st.text(), RECORDS, max_size=4),
    st.dictionaries(st.text(), st.builds(Withheld, st.text(), st.text()), max_size=2),
)


def test_state_path() -> None:
    assert state_path("/var/lib/k", "/sys/fs/bpf") == "/var/lib/k/sys-fs-bpf.json"
    assert state_path("/var/lib/k", "/sys/fs/bpf/") == "/var/lib/k/sys-fs-bpf.json"
    assert state_path("/s", "/sys/fs/bpf/my.root") == "/s/sys-fs-bpf-my\\x2eroot.json"
    assert state_path("/s", "/a/b") != state_path("/s", "/a-b")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "k.json")

    @settings(deadline=None, max_examples=60)
    @given(MEMORIES)
    def round_trip(memory: Memory) -> None:
        write_state(path, memory)
        assert read_state(path) == (memory, "")

    round_trip()


def test_no_file_is_nothing_remembered(tmp_path: Path) -> None:
    assert read_state(str(tmp_path / "none.json")) == (Memory(), "")


def test_a_file_of_a_former_version_is_read(tmp_path: Path) -> None:
    record = {"id": 7, "made": True, "changes": {"lost": 1}}
    text = json.dumps({"format": 1, "boot_id": "x", "maps": {"flows": record}})
    (tmp_path / "k.json").write_text(text)
    memory, note = read_state(str(tmp_path / "k.json"))
    assert (memory, note) == (
        Memory("x", {"flows": MapRecord(7, made=True, changes={MapIdChange.LOST: 1})}),
        "",
    )


def test_a_file_of_this_version_is_one_that_the_former_reads(tmp_path: Path) -> None:
    """Going back loses no count."""
    last = LastChange(MapIdChange.LOST, 5, 12.5)
    record = MapRecord(7, made=True, changes={MapIdChange.LOST: 1}, since=12.5, last_change=last)
    write_state(str(tmp_path / "k.json"), Memory("x", {"flows": record}))
    data = json.loads((tmp_path / "k.json").read_text())
    assert data["format"] == 1 and {"boot_id", "maps"} <= set(data)
    assert data["maps"]["flows"] == {
        "id": 7,
        "made": True,
        "changes": {"lost": 1},
        "since": 12.5,
        "last_change": {"reason": "lost", "old_id": 5, "at": 12.5},
    }


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "k.json")
    first = lock_state(path)
    assert first is not None
    with pytest.raises(BusyError, match=r"another keeper writes the state file .*: stop it first"):
        lock_state(path)
    other = lock_state(f"{path}2")
    assert other is not None, "that of another pin root"
    os.close(other)
    write_state(path, MEMORY)
    with pytest.raises(BusyError):
        lock_state(path)
    os.close(first)
    again = lock_state(path)
    assert again is not None
    os.close(again)


def test_where_no_state_file_can_be_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert lock_state(str(tmp_path / "file" / "k.json")) is None


def damaged_files() -> list[str]:
    whole = {
        "format": 1,
        "boot_id": "x",
        "maps": {"flows": {"id": 7, "made": True, "changes": {"lost": 1}}},
    }
    record = whole["maps"]
    assert isinstance(record, dict)

    def with_more(**values: object) -> str:
        return json.dumps(whole | {"maps": {"flows": record["flows"] | values}})

    return [
        with_more(changes={"lost": -1}),
        with_more(since="soon"),
        with_more(since=None),
        with_more(since=float("nan")),
        with_more(past_id="x"),
        with_more(last_change=7),
        with_more(last_change={}),
        with_more(last_change={"reason": "hm", "old_id": 7, "at": 1.0}),
        with_more(last_change={"reason": "lost", "old_id": 7, "at": float("inf")}),
        "",
        "null",
        "[]",
        '"text"',
        "{",
        "{}",
        json.dumps(whole)[:-4],
        "[" * 100_000,
        json.dumps(whole | {"format": 2}),
        json.dumps(whole | {"maps": []}),
        json.dumps(whole | {"maps": None}),
        json.dumps(whole | {"maps": {"flows": None}}),
        json.dumps(whole | {"maps": {"flows": [1]}}),
        json.dumps(whole | {"maps": {"flows": {"id": 7}}}),
        json.dumps(whole | {"maps": {"flows": record["flows"] | {"id": "x"}}}),
        json.dumps(whole | {"maps": {"flows": record["flows"] | {"id": None}}}),
        json.dumps(whole | {"maps": {"flows": record["flows"] | {"changes": {"hm": 1}}}}),
        json.dumps(whole | {"maps": {"flows": record["flows"] | {"changes": [1]}}}),
        json.dumps(whole | {"maps": {"flows": record["flows"] | {"changes": {"lost": None}}}}),
        json.dumps(whole).replace("7", "1e999"),
        json.dumps(whole | {"withheld": []}),
        json.dumps(whole | {"withheld": {"one": None}}),
        json.dumps(whole | {"withheld": {"one": {"digest": "a"}}}),
    ]


@pytest.mark.parametrize("text", damaged_files(), ids=lambda text: text[:60])
def test_a_damaged_file_is_a_note(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k.json"
    path.write_text(text)
    memory, note = read_state(str(path))
    assert memory == Memory()
    assert note.startswith(f"cannot read the state file {path} (")
    assert "taken for somebody else's" in note


def test_any_bytes_are_a_note(tmp_path: Path) -> None:
    path = tmp_path / "k.json"

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=40))
    def damaged(data: bytes) -> None:
        path.write_bytes(data)
        assert read_state(str(path))[0] == Memory()

    damaged()


def test_what_cannot_be_opened_is_a_note(tmp_path: Path) -> None:
    memory, note = read_state(str(tmp_path))
    assert memory == Memory() and "Is a directory" in note


def test_it_is_private_and_makes_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "state" / "k.json"
    write_state(str(path), MEMORY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["k.json"]


def test_a_write_that_fails_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "k.json")
    write_state(path, MEMORY)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeeperError, match=r"cannot write the state file .*: No space left"):
        write_state(path, Memory("another"))
    assert read_state(path) == (MEMORY, "")


def test_it_is_on_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k.json"
    write_state(str(path), MEMORY)
    seen: list[str] = []
    replace, fsync = os.replace, os.fsync

    def synced(descriptor: int) -> None:
        whole = os.readlink(f"/proc/self/fd/{descriptor}")
        seen.append(f"fsync {Path(whole).name} {json.loads(Path(whole).read_text())['boot_id']}")
        fsync(descriptor)

    def replaced(source: str, to: str) -> None:
        seen.append(f"replace {Path(source).name} {Path(to).name}")
        assert read_state(to) == (MEMORY, "")
        replace(source, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_state(str(path), Memory("another"))
    assert seen == ["fsync k.json.new another", "replace k.json.new k.json"]
    assert read_state(str(path)) == (Memory("another"), "")


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeeperError, match=r"cannot write the state file .*: File exists"):
        write_state(str(tmp_path / "file" / "k.json"), MEMORY)
