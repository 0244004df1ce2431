"""A daemon of `tests.system`, run as the service: with everything that the unit allows and refuses,
but started, watched and ended by the test."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.systemd import units
from tests.systemd.install import install
from tests.systemd.units import UNIT, systemctl

LIBRARY = "/usr/lib/bpfkeeperd"


def quoted(text: str) -> str:
    """As one word of a setting of a unit."""
    for character, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", "\\n")):
        text = text.replace(character, written)
    return f'"{text}"'


class Service:
    """What is used of a `subprocess.Popen`, of the service's main process."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        install()
        assert command[0] == sys.executable
        words = ["/usr/bin/python3", *command[1:]]
        lines = [
            *("[Service]", "Type=exec", "NotifyAccess=none", "WatchdogSec=0", "Restart=no"),
            *("ExecStart=", f"ExecStart={' '.join(quoted(w.replace('$', '$$')) for w in words)}"),
            *(f"Environment={quoted(f'{name}={text}')}" for name, text in variables.items()),
            *(f"Environment=PYTHONPATH={LIBRARY}", "WorkingDirectory=/"),
            *(f"StandardOutput=append:{log}", "StandardError=inherit"),
        ]
        log.touch()
        units.put_drop_in("as-service", "\n".join([*lines, ""]))
        systemctl("reset-failed")
        systemctl("restart", UNIT)  # it runs when the package was just installed
        self.pid = units.main_pid()

    def poll(self) -> int | None:
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            return None
        found = units.properties("ActiveState", "ExecMainCode", "ExecMainStatus")
        if found["ActiveState"] not in ("inactive", "failed"):
            return None
        status = int(found["ExecMainStatus"])
        return status if found["ExecMainCode"] == "1" else -status

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 60)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(UNIT, timeout or 60)
            time.sleep(0.01)
        return code
