"""Puts what the package has into a guest, where the package would."""

import functools
import shutil
import subprocess
import sysconfig
from pathlib import Path

from tests.systemd.boot import CHECKOUT, RESULTS

PACKAGES = Path(RESULTS) / "packages"
"""What the package depends on and this machine does not have, and the package itself."""
SITE = Path("/usr/lib/python3/dist-packages")
LIBRARY = Path("/usr/lib/bpfkeeperd-tests")
NEEDED = ("_cffi_backend*", "cffi", "_yaml", "yaml", "elftools", "prometheus_client", "systemd")
UNITS = Path("/usr/lib/systemd/system")
COMMAND = """\
#!/usr/bin/python3
import sys
from bpfkeeperd.__main__ import main
sys.exit(main())
"""


@functools.cache
def install_package() -> None:
    """Installs the package, if there is one, else what would be in it."""
    packages = sorted(map(str, PACKAGES.glob("*.deb")))
    if packages:
        command = ["dpkg", "--force-unsafe-io", "--install", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        _install_by_hand()
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def _install_by_hand() -> None:
    """The checkout's package and what it needs of the environment, which the service's restrictions
    may hide where they are."""
    LIBRARY.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    assert installed.is_relative_to(CHECKOUT), "the tests have another environment than the daemon"
    found = [path for pattern in NEEDED for path in installed.glob(pattern)]
    for path in [CHECKOUT / "bpfkeeperd", *found]:
        if path.is_dir():
            shutil.copytree(path, LIBRARY / path.name)
        else:
            shutil.copy(path, LIBRARY)
    SITE.mkdir(parents=True, exist_ok=True)
    (SITE / "bpfkeeperd-tests.pth").write_text(f"{LIBRARY}\n")
    command = Path("/usr/bin/bpfkeeperd")
    command.write_text(COMMAND)
    command.chmod(0o755)
    for path in (CHECKOUT / "systemd").iterdir():
        if path.suffix in (".service", ".socket"):
            shutil.copy(path, UNITS)
    shutil.copy(CHECKOUT / "systemd" / "bpfkeeperd.catalog", "/usr/lib/systemd/catalog")
