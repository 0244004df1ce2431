"""Who may change a pin root. flock works on any directory: no bpffs is needed here."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfkeeperd.errors import BusyError, PinRootError
from bpfkeeperd.lock import RootLock, letting_look, reading, writing


def opened(directory: object) -> int:
    """Takes any directory; `bpfkeeperd.pinroot` judges it in earnest."""
    try:
        return os.open(str(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PinRootError(str(error)) from None


def is_free(directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


@contextmanager
def locked(directory: Path, operation: int) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, operation)
        yield
    finally:
        os.close(fd)


def test_one_keeper_at_a_time(tmp_path: Path) -> None:
    with RootLock(str(tmp_path), opened):
        with pytest.raises(BusyError) as caught:
            RootLock(str(tmp_path), opened)
        assert str(caught.value) == (
            f"another keeper holds the pin root {tmp_path}: use `bpfkeeperd reload`, or stop it"
            " first"
        )
        assert not is_free(tmp_path)
    assert is_free(tmp_path)
    RootLock(str(tmp_path), opened).close()


def test_refresh_follows_the_directory_that_is_there_now(tmp_path: Path) -> None:
    root, before = tmp_path / "root", tmp_path / "before"
    root.mkdir()
    with RootLock(str(root), opened) as held:
        held.refresh()
        root.rename(before)
        with pytest.raises(PinRootError, match="cannot look at pin root"):
            held.refresh()
        assert not is_free(before), "it is kept while there is no other"
        root.mkdir()
        held.refresh()
        assert is_free(before) and not is_free(root)
    assert is_free(root)


def test_refresh_does_not_take_what_another_keeper_has(tmp_path: Path) -> None:
    root, before = tmp_path / "root", tmp_path / "before"
    root.mkdir()
    with RootLock(str(root), opened) as held:
        root.rename(before)
        root.mkdir()
        with RootLock(str(root), opened):
            with pytest.raises(BusyError):
                held.refresh()
            assert not is_free(before), "what it had it keeps"


def test_readers_read_together(tmp_path: Path) -> None:
    with reading(opened(tmp_path)), reading(opened(tmp_path)):
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_readers_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr(time, "sleep", no_sleep)
    with reading(opened(tmp_path)), reading(opened(tmp_path)):
        pass


def test_a_reader_waits_for_the_writer(tmp_path: Path) -> None:
    order: list[str] = []

    def read() -> None:
        with reading(opened(tmp_path)):
            order.append("read")

    reader = threading.Thread(target=read)
    with writing(opened(tmp_path)):
        reader.start()
        time.sleep(0.1)
        order.append("written")
    reader.join(10)
    assert order == ["written", "read"]


def test_a_writer_does_not_wait_for_a_reader_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 1))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) / 4)
    with locked(tmp_path, fcntl.LOCK_SH), writing(opened(tmp_path)):
        assert 3 < next(clock) < 20, "it waited a second, and not for ever"


def test_nothing_to_lock_is_nothing_to_wait_for() -> None:
    for lock_it in (reading, writing):
        with lock_it(None):
            pass


def test_what_fails_inside_gives_the_lock_back(tmp_path: Path) -> None:
    for lock_it in (reading, writing):
        with pytest.raises(RuntimeError), lock_it(opened(tmp_path)):
            raise RuntimeError
        assert is_free(tmp_path)


def test_readers_are_let_in_while_a_reload_waits(tmp_path: Path) -> None:
    def can_read() -> bool:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    with writing(opened(tmp_path)) as lock:
        assert not can_read()
        with letting_look(lock):
            assert can_read()
        assert not can_read()
    with letting_look(None):
        pass
