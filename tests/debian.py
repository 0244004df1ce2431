"""The project as a Debian package: built, given another version, and what it depends on.

Needs what `make deb-packages` installs, and a network for the dependencies that are not there.
"""

import functools
import re
import shutil
import subprocess
from pathlib import Path

from bpfkeeperd import __version__
from tests.aptfetch import FetchError, apt_options, run

TOP = Path(__file__).parents[1]
FETCHED = TOP / ".tools" / "debs"


def build_package(version_suffix: str = "") -> Path:
    """Builds the package of this checkout, once in a run, and returns its file.

    With a suffix, such as ``+1``, it is that package under a later version, which what is in it
    says of itself, too.

    Raises:
        FetchError: it cannot be built; the text has the end of the build's own words.
    """
    package = _built()
    return with_version(package, f"{__version__}{version_suffix}") if version_suffix else package


@functools.cache
def _built() -> Path:
    done = subprocess.run(["make", "deb"], cwd=TOP, capture_output=True, text=True, timeout=600)
    if done.returncode:
        words = (done.stdout + done.stderr)[-4000:]
        raise FetchError(f"cannot build the package: {words}")
    (package,) = (TOP / "build" / "deb").glob("bpfkeeperd_*.deb")
    return package


def with_version(package: Path, version: str) -> Path:
    """A copy of a package with another version."""
    tree = package.with_name(f"version-{version}")
    shutil.rmtree(tree, ignore_errors=True)
    run(["dpkg-deb", "--raw-extract", str(package), str(tree)], package.parent)
    control = tree / "DEBIAN" / "control"
    text, found = re.subn("(?m)^Version: .*", f"Version: {version}", control.read_text())
    assert found == 1
    control.write_text(text)
    module = tree / "usr/lib/bpfkeeperd/bpfkeeperd/__init__.py"
    module.write_text(module.read_text().replace(f'"{__version__}"', f'"{version}"'))
    changed = package.with_name(package.name.replace(f"_{__version__}_", f"_{version}_"))
    run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(changed)], package.parent)
    shutil.rmtree(tree)
    return changed


def fetch_dependencies(package: Path) -> list[Path]:
    """The files of all packages that this machine lacks to install a package; none is installed.

    Raises:
        FetchError: not to be had from the machine's sources, or no network.
    """
    FETCHED.mkdir(parents=True, exist_ok=True)
    install = ["-qq", "--no-install-recommends", "install", str(package)]
    try:
        options = [f"-oDir::Cache={FETCHED}", "-oAPT::Sandbox::User=root"]
        return _download(options, install)
    except FetchError:  # the machine's lists are empty, or too old: newer ones, of our own
        options = apt_options(FETCHED)
        run(["apt-get", *options, "-qq", "update"], FETCHED)
        return _download(options, install)


def _download(options: list[str], install: list[str]) -> list[Path]:
    archives, nothing = FETCHED / "archives", FETCHED / "nothing"
    for directory in (archives, nothing):  # what is fetched already has no URI to print
        (directory / "partial").mkdir(parents=True, exist_ok=True)
    asked = [*options, f"-oDir::Cache::archives={nothing}", "--print-uris", *install]
    uris = re.findall(r"(?m)^'(?!file:)\S+' (\S+\.deb) ", run(["apt-get", *asked], FETCHED))
    fetched = [*options, f"-oDir::Cache::archives={archives}", "--yes", "--download-only"]
    run(["apt-get", *fetched, *install], FETCHED)
    return [archives / name for name in uris if not name.startswith("bpfkeeperd_")]
