"""The examples as they are shipped: right in the eyes of `check`, and listed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkeeperd.manifest import parse_manifest

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
OBJECTS = EXAMPLES.parents[1] / "bpfkeeperd" / "bpf"
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=[path.stem for path in MANIFESTS])
def test_check_passes(manifest: Path, tmp_path: Path) -> None:
    """A copy, with the objects where it expects them: root takes the checkout of nobody else."""
    copy = tmp_path / "config/examples" / manifest.name
    copy.parent.mkdir(parents=True)
    shutil.copyfile(manifest, copy)
    (tmp_path / "bpfkeeperd/bpf").mkdir(parents=True)
    for path in OBJECTS.glob("*.bpf.o"):
        shutil.copyfile(path, tmp_path / "bpfkeeperd/bpf" / path.name)
    command = [sys.executable, "-m", "bpfkeeperd", "check", "-c", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_lists_all_of_them() -> None:
    listed = re.findall(r"(?m)^\| \[\w+\]\((\S+)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == [path.name for path in MANIFESTS]


def test_each_has_a_pin_root_of_its_own() -> None:
    """They can be tried one after the other, and one is not taken down by another's reload."""
    roots = [re.search(r"(?m)^pin_root: (\S+)$", path.read_text()) for path in MANIFESTS]
    assert all(roots)
    assert len({root[1] for root in roots if root}) == len(MANIFESTS) > 0


def test_what_is_commented_out_in_the_manifest_to_begin_with() -> None:
    """A comment has one blank or three after its sign, what is commented out none or two, four…"""
    text = (EXAMPLES.parent / "bpfkeeperd.yaml").read_text()
    text = re.sub(r"(?m)^#(?=\w+:|(?:  )+[^ ])", "", text)
    text = re.sub(r"(?m)^(\s+)#(?=[^ ])", r"\1", text)
    manifest = parse_manifest([("/etc/bpfkeeperd.yaml", text.encode())])
    assert manifest.heal and manifest.metrics_tls
    assert set(manifest.maps) == {"sock_ops_map", "settings"}
    kinds = {
        type(attach.target).__name__
        for entry in manifest.objects.values()
        for program in entry.programs.values()
        for attach in program.attach
    }
    assert kinds >= {
        "CgroupTarget",
        "InterfaceTarget",
        "NetnsTarget",
        "NetfilterTarget",
        "MapTarget",
        "FunctionTarget",
        "BinaryTarget",
        "PerfEventTarget",
    }
    programs = [each for entry in manifest.objects.values() for each in entry.programs.values()]
    assert any(each.health for each in programs) and any(each.attach_auto for each in programs)
