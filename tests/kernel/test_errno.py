"""Each call of bpf(2) and of bpffs fails, one after the other, in starts, reloads and all else:
what was there stays, what was done is whole, nothing is left open, and the message names the call.

`make test-errno` takes every call through every errno; without it some calls fail with one each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.gap import quiet_pair
from tests.conftest import BuildObject
from tests.errno.scenarios import SCENARIOS
from tests.errno.shim import build
from tests.scenario import World

STRIDE = "ERRNO_STRIDE"
"""Environment: every how manieth call fails, with one errno; 0: each one with each errno."""
ONLY = "ERRNO_ONLY"
"""Environment: numbers of calls, to look at those alone."""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of one with a veth0; empty for scenarios that need none."""
    name = request.node.callspec.params["name"]
    if not SCENARIOS[name].needs_netns:
        yield ""
        return
    with quiet_pair(f"keeper-errno-{os.getpid()}") as pair:
        yield pair.here


def built(world: World, name: str, netns: str) -> list[tuple[str, list[tuple[str, str]], str]]:
    """The objects that a scenario takes, compiled."""
    made = []
    compile_object = world.build

    def record(source: str, **macros: object) -> Path:
        path = compile_object(source, **macros)
        made.append((source, [(key, str(macros[key])) for key in sorted(macros)], str(path)))
        return path

    recording = World(world.directory, world.pins, world.cgroup, record)
    scenario = SCENARIOS[name]
    (scenario.begin or scenario.change)(recording)
    if scenario.begin and scenario.change.__name__.startswith("second"):
        scenario.change(recording)
    return made


@pytest.mark.parametrize("name", SCENARIOS)
def test_calls_fail(
    world: World, build_object: BuildObject, shim: Path, netns: str, name: str
) -> None:
    asked = {
        "scenario": name,
        "directory": str(world.directory),
        "mount": str(world.pins),
        "cgroup": str(world.cgroup),
        "netns": netns,
        "objects": built(world, name, netns),
        "stride": int(os.environ.get(STRIDE, "23")),
        "only": [int(number) for number in os.environ.get(ONLY, "").split()],
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.errno.runner"],
        input=json.dumps(asked),
        env=os.environ | {"LD_PRELOAD": str(shim), "ERRNO_NETNS": netns},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout)
    counted = [call for call in answer["calls"] if not call.startswith("LINK_GET")]
    assert answer["tried"] >= len(counted) // 25 or asked["only"]
    assert not answer["findings"], "\n\n".join(
        [f"{len(answer['findings'])} of {answer['tried']} cases:", *answer["findings"]]
    )
