"""Units and the journal of the guest."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

UNIT = "bpfkeeperd.service"
DROP_INS = Path(f"/run/systemd/system/{UNIT}.d")
SHIPPED_DROP_INS = Path("/usr/share/bpfkeeperd/systemd")
WAIT_SECONDS = 60.0


def run(*command: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def systemctl(*arguments: str) -> str:
    """What it prints.

    Raises:
        AssertionError: it failed.
    """
    done = run("systemctl", *arguments)
    words = " ".join(arguments)
    assert done.returncode == 0, f"systemctl {words}: {done.stdout}{done.stderr}{last_messages()}"
    return done.stdout


def properties(*names: str, unit: str = UNIT) -> dict[str, str]:
    wanted = [option for name in names for option in ("-p", name)]
    lines = systemctl("show", *wanted, unit).splitlines()
    return dict(line.split("=", 1) for line in lines)


def show(name: str) -> str:
    """A property of the service."""
    return properties(name)[name]


def main_pid() -> int:
    return int(show("MainPID"))


def is_active() -> bool:
    return show("ActiveState") == "active"


def put_drop_in(name: str, text: str) -> Path:
    DROP_INS.mkdir(parents=True, exist_ok=True)
    path = DROP_INS / f"{name}.conf"
    path.write_text(text)
    systemctl("daemon-reload")
    return path


def remove_drop_in(path: Path) -> None:
    path.unlink()
    systemctl("daemon-reload")


def cursor() -> str:
    """Where the journal ends now."""
    run("journalctl", "--sync")
    found: str = json.loads(run("journalctl", "-n", "1", "-o", "json").stdout)["__CURSOR"]
    return found


def entries(since: str, **fields: str) -> list[dict[str, str]]:
    """What the service wrote into the journal since then, with these fields.

    They are compared here: journalctl leaves out the first one when the cursor has others.
    """
    run("journalctl", "--sync")
    lines = run("journalctl", "-o", "json", f"--after-cursor={since}").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    wanted = {"_SYSTEMD_UNIT": UNIT, **{name: str(text) for name, text in fields.items()}}
    return [entry for entry in found if wanted.items() <= entry.items()]


def last_messages() -> str:
    return "\n" + run("journalctl", "-n", "30", "-o", "short-precise").stdout


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in time{last_messages()}"
        time.sleep(0.05)


def wait_for_entry(since: str, **fields: str) -> dict[str, str]:
    """The first of these; see `entries`."""
    found: list[dict[str, str]] = []

    def came() -> bool:
        found.extend(entries(since, **fields)[:1])
        return bool(found)

    wait(came, f"a message with {fields}")
    return found[0]
