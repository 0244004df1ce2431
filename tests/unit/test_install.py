"""`make install` and `make uninstall`, below a directory of the test's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfkeeperd import __version__

TOP = Path(__file__).parents[2]
PREFIX = "/opt/keeper"


def make(target: str, root: Path, *, preserves: bool = False) -> None:
    """With the Python of the tests, which has all it takes: nothing is installed for it.

    ``preserves``: systemd keeps descriptors while a service is stopped.
    """
    variables = [f"DESTDIR={root}", f"PREFIX={PREFIX}", f"PYTHON={sys.executable}"]
    variables += [f"PRESERVES={'true' if preserves else 'false'}"]
    subprocess.run(["make", "--silent", target, *variables], cwd=TOP, check=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("root")
    make("install", directory)
    return directory


def files(directory: Path) -> set[str]:
    return {f"/{path.relative_to(directory)}" for path in directory.rglob("*") if path.is_file()}


def names(*patterns: str) -> set[str]:
    """Names of the files of the checkout that match."""
    return {path.name for pattern in patterns for path in TOP.glob(pattern)}


def test_everything_is_where_a_distribution_has_it(root: Path) -> None:
    library, share = f"{PREFIX}/lib/bpfkeeperd/bpfkeeperd", f"{PREFIX}/share"
    modules = {str(path.relative_to(TOP)) for path in TOP.glob("bpfkeeperd/**/*.py")}
    objects = {f"{name.removesuffix('.c')}.o" for name in names("bpf/*.bpf.c")}
    assert len(modules) > 100 and len(objects) > 20
    assert files(root) == {
        "/etc/bpfkeeperd/bpfkeeperd.yaml",
        f"{PREFIX}/bin/bpfkeeperd",
        *(f"{PREFIX}/lib/bpfkeeperd/{name}" for name in modules if "/_build/" not in name),
        *(f"{library}/{name}" for name in ("_libbpf.abi3.so", "_libbpf.pyi")),
        *(f"{library}/bpf/{name}" for name in objects),
        *(
            f"{PREFIX}/lib/systemd/system/{n}"
            for n in names("systemd/*.service", "systemd/*.socket")
        ),
        *(f"{PREFIX}/lib/systemd/catalog/{name}" for name in names("systemd/*.catalog")),
        *(f"{share}/bpfkeeperd/systemd/{name}" for name in names("systemd/drop-ins/*.conf")),
        *(f"{share}/bpfkeeperd/prometheus/{name}" for name in names("config/prometheus/*.yml")),
        f"{share}/bpfkeeperd/grafana/bpfkeeperd.json",
        *(f"{share}/doc/bpfkeeperd/{name}" for name in ("README.md", "CHANGELOG.md")),
        *(f"{share}/doc/bpfkeeperd/examples/{name}" for name in names("config/examples/*")),
        *(f"{share}/doc/bpfkeeperd/examples/bpf/{name}" for name in names("bpf/*.c", "bpf/*.h")),
        *(f"{share}/man/{name}" for name in ("man8/bpfkeeperd.8", "man5/bpfkeeperd.yaml.5")),
    }
    assert (root / "etc/bpfkeeperd/conf.d").is_dir()


def test_what_is_installed_runs_from_there(root: Path) -> None:
    script = (root / f"{PREFIX[1:]}/bin/bpfkeeperd").read_text()
    assert script.startswith(f"#!{sys.executable} -I\n")
    script = script.replace(f'"{PREFIX}/', f'"{root}{PREFIX}/')

    def run(lines: str) -> str:
        command = [sys.executable, "-I", "-B", "-c", lines, "--version"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout

    assert run(script) == f"bpfkeeperd {__version__}\n"
    where = script.replace("sys.exit(main())", "import bpfkeeperd.kernel as k; print(k.__file__)")
    assert run(where).startswith(f"{root}{PREFIX}/lib/bpfkeeperd/")


def test_paths_are_those_of_the_place(root: Path) -> None:
    prefix = root / PREFIX[1:]
    unit = (prefix / "lib/systemd/system/bpfkeeperd.service").read_text()
    assert f"\nExecStart={PREFIX}/bin/bpfkeeperd run" in unit and "/usr/bin/bpfkeeperd" not in unit
    example = (prefix / "share/doc/bpfkeeperd/examples/protocols.yaml").read_text()
    (file,) = (line.split()[1] for line in example.splitlines() if line.strip().startswith("file:"))
    assert file.startswith(PREFIX) and (root / file[1:]).is_file()
    assert f"{PREFIX}/share/bpfkeeperd" in (prefix / "share/man/man8/bpfkeeperd.8").read_text()


def test_a_manifest_that_is_there_stays(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    manifest = copy / "etc/bpfkeeperd/bpfkeeperd.yaml"
    manifest.write_text("version: 1\n")
    (copy / f"{PREFIX[1:]}/lib/bpfkeeperd/bpfkeeperd/removed_since.py").touch()

    for _ in range(2):
        make("install", copy, preserves=True)

    assert manifest.read_text() == "version: 1\n"
    active = f"{PREFIX}/lib/systemd/system/bpfkeeperd.service.d"
    preserving = {f"{active}/{name}" for name in names("systemd/drop-ins/preserve.conf")}
    assert files(copy) == files(root) | preserving

    make("uninstall", copy)

    assert files(copy) == {"/etc/bpfkeeperd/bpfkeeperd.yaml"}
