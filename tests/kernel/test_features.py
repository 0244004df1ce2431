"""What libbpf believes of the kernel is right, or no object is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import BuildObject
from tests.errno.shim import build
from tests.errno.words import SPENT
from tests.scenario import World


def test_failed_questions_are_no_answers(build_object: BuildObject, tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tests.errno.learning", str(build_object("globals"))],
        env=os.environ | {"LD_PRELOAD": str(build(tmp_path))},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    answer = json.loads(shown)
    assert not answer["faults"], "\n".join(answer["faults"])
    assert answer["outcomes"]["spent"] >= 10, "one for each question"
    assert answer["outcomes"]["later"] > 0


def test_daemon_ends_where_it_could_load_nothing(world: World) -> None:
    """Even when it has nothing to load yet: the service manager starts it again."""
    world.write("maps: {a: {type: hash, key: u32, value: u64, max_entries: 4}}")
    places = ["--state-dir", world.state_directory, "--run-dir", str(world.directory)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.errno.starting", "-c", str(world.manifest_file), *places],
        env=os.environ | {"LD_PRELOAD": str(build(world.directory))},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert SPENT in ended.stderr
    assert not (world.pins / "a").exists()
