"""What libbpf believes of the kernel is right, or no object is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import BuildObject
from tests.errno.shim import build


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
