"""Metrics as a file that is never seen half written."""

import os
import stat
import threading
from pathlib import Path

import pytest

from bpfkeeperd.errors import KeeperError
from bpfkeeperd.textfile import check_textfile, write_textfile


def test_whoever_reads_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "bpfkeeperd.prom"
    check_textfile(str(path))
    before = os.umask(0o077)
    try:
        write_textfile(str(path), b"one 1\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one 1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == [path.name]


def test_a_reader_sees_the_one_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "bpfkeeperd.prom"
    texts = [letter * (1 << 20) for letter in (b"a", b"b")]
    write_textfile(str(path), texts[0])
    seen = list[bytes]()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(50):
            write_textfile(str(path), texts[number % 2])
    finally:
        stop.set()
        reader.join()
    assert seen and set(seen) <= set(texts)


def test_what_failed_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "bpfkeeperd.prom"
    path.mkdir()  # nothing can take the place of a directory
    with pytest.raises(KeeperError, match=f"^cannot write metrics to {path}: Is a directory$"):
        write_textfile(str(path), b"one 1\n")
    assert os.listdir(tmp_path) == [path.name]


def test_what_a_dead_process_of_this_number_left(tmp_path: Path) -> None:
    """Or somebody else put there, to have another file written."""
    path, victim = tmp_path / "bpfkeeperd.prom", tmp_path / "victim"
    victim.write_bytes(b"mine")
    Path(f"{path}.{os.getpid()}").symlink_to(victim)
    write_textfile(str(path), b"one 1\n")
    assert path.read_bytes() == b"one 1\n" and not path.is_symlink()
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metrics", "node_exporter does not read it: choose a name that ends in .prom"),
        ("no/where.prom", "there is no directory {}/no: make it, or correct the path"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, name: str, message: str) -> None:
    path = f"{tmp_path}/{name}"
    with pytest.raises(KeeperError) as raised:
        check_textfile(path)
    assert str(raised.value) == f"cannot write metrics to {path}: {message.format(tmp_path)}"
