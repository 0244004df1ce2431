"""Failpoints: what the environment asks for, and nothing else, stops the process."""

import signal
import subprocess
import sys

import pytest

from bpfkeeperd.steps import FAILPOINT_VARIABLE, Step, failpoint, no_failpoint

CHILD = """
from bpfkeeperd.steps import Step, failpoint
on_step = failpoint()
for number in range(1, 5):
    for step in (Step.ATTACH, Step.SWAP):
        on_step(step, number)
        print(step, number, flush=True)
"""


def run(value: str) -> tuple[int, list[str]]:
    """Exit status and what was done, of a process that goes through some steps."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={FAILPOINT_VARIABLE: value},
        stdout=subprocess.PIPE,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("value", "done"),
    [("swap:3", 5), ("swap:1", 1), ("swap", 1), ("attach:2", 2), ("attach", 0)],
)
def test_the_process_is_killed_just_before_the_step(value: str, done: int) -> None:
    status, lines = run(value)
    assert status == -signal.SIGKILL
    assert len(lines) == done


@pytest.mark.parametrize("value", ["swap:5", "detach:1", "swap:0"])
def test_a_step_that_does_not_come_stops_nothing(value: str) -> None:
    status, lines = run(value)
    assert status == 0 and len(lines) == 8


def test_without_the_variable_nothing_is_ever_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILPOINT_VARIABLE, raising=False)
    assert failpoint() is no_failpoint
    monkeypatch.setenv(FAILPOINT_VARIABLE, "")
    assert failpoint() is no_failpoint
    for step in Step:
        no_failpoint(step, "anything")


@pytest.mark.parametrize("value", ["swop:1", "SWAP", ":1x", "swap:x"])
def test_a_failpoint_that_does_not_exist(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILPOINT_VARIABLE, value)
    if value.startswith(":"):
        assert failpoint() is no_failpoint
        return
    with pytest.raises(ValueError):
        failpoint()
