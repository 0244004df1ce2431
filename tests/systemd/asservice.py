"""A daemon of `tests.system`, run as the service: with everything that the unit allows and refuses,
but started, watched and ended by the test."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.systemd.install import install

UNIT = "bpfkeeperd.service"
DROP_INS = Path(f"/run/systemd/system/{UNIT}.d")
TEST_DROP_IN = DROP_INS / "90-tests.conf"
LIBRARY = "/usr/lib/bpfkeeperd"


def systemctl(*arguments: str) -> str:
    """What it prints.

    Raises:
        AssertionError: it failed.
    """
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"systemctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def properties(*names: str, unit: str = UNIT) -> dict[str, str]:
    wanted = [option for name in names for option in ("-p", name)]
    lines = systemctl("show", *wanted, unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


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
        DROP_INS.mkdir(parents=True, exist_ok=True)
        lines = [
            *("[Service]", "Type=exec", "NotifyAccess=none", "WatchdogSec=0", "Restart=no"),
            *("ExecStart=", f"ExecStart={' '.join(quoted(w.replace('$', '$$')) for w in words)}"),
            *(f"Environment={quoted(f'{name}={text}')}" for name, text in variables.items()),
            *(f"Environment=PYTHONPATH={LIBRARY}", "WorkingDirectory=/"),
            *(f"StandardOutput=append:{log}", "StandardError=inherit"),
        ]
        TEST_DROP_IN.write_text("\n".join([*lines, ""]))
        log.touch()
        systemctl("daemon-reload")
        systemctl("reset-failed")
        systemctl("start", UNIT)
        self.pid = int(properties("MainPID")["MainPID"])

    def poll(self) -> int | None:
        if self.pid and os.path.exists(f"/proc/{self.pid}"):
            return None
        found = properties("ActiveState", "ExecMainCode", "ExecMainStatus")
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
