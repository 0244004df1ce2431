"""The package, installed in a guest."""

import functools
import subprocess
from pathlib import Path

from tests.systemd.boot import RESULTS

PACKAGES = Path(RESULTS) / "packages"


@functools.cache
def install() -> None:
    """Installs the package with all that it needs, once; the service is started by that."""
    # What keeps services from being started in images that are made of this machine.
    Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
    dpkg("first")


def upgrade() -> None:
    """To the later version."""
    install()
    dpkg("later")


def dpkg(which: str) -> None:
    files = sorted(map(str, (PACKAGES / which).glob("*.deb")))
    assert files
    command = ["dpkg", "--force-unsafe-io", "--install", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, done.stderr)
