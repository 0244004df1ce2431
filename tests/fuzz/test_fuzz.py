"""The short run: a fixed seed, a fixed number of inputs, and every input that was kept."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, kept

ROOT = Path(__file__).parents[2]
KEPT = {name: (target, data) for target in TARGETS for name, data in kept(target)}


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run(target: str, tmp_path: Path) -> None:
    """In a process of its own: libbpf reads what comes of hostile objects."""
    last = tmp_path / "last.hex"
    command = [sys.executable, "-m", "tests.fuzz", target, "--seed", "1", "--executions", "1000"]
    run = subprocess.run(
        [*command, "--last", str(last)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}\nthe last input: {last.read_text()}"
    assert f"{target}: 1000 executions" in run.stdout


@pytest.mark.parametrize("name", KEPT)
def test_kept_inputs(name: str) -> None:
    target, data = KEPT[name]
    run, _ = TARGETS[target]
    assert run(data)
