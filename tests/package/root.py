"""A root to install packages in: what this machine has, and changes that go away with it.

No service manager runs there. The mounts are seen by the tests alone, which have a mount namespace
of their own.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.system.process import Notifications

WAIT_SECONDS = 60.0
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""What is installed by the distribution, and nothing of the tests' own environment."""


class Root:
    """Commands run in it; paths of it are seen from outside below ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *command: str, code: int = 0) -> str:
        """What a command writes to both outputs; it has to end with this exit code."""
        environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            ["chroot", str(self.path), *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"{command} exits with {done.returncode}: {done.stdout}"
        return done.stdout

    def install(self, packages: Sequence[Path]) -> str:
        copies = [shutil.copy(package, self.path / "var/tmp") for package in packages]
        names = [f"/var/tmp/{Path(copy).name}" for copy in copies]
        return self.run("dpkg", "--install", *names)

    def map_ids(self) -> dict[str, int]:
        rows = json.loads(self.run("bpfkeeperd", "maps", "--json"))
        return {row["name"]: row["id"] for row in rows}

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """The installed daemon, from when it is ready; SIGTERM has to end it well."""
        notifications = Notifications()
        process = subprocess.Popen(
            ["chroot", str(self.path), "/usr/bin/bpfkeeperd", "run"],
            env={"PATH": PATH, "NOTIFY_SOCKET": notifications.address},
        )
        try:
            notifications.wait("READY", 1, lambda: process.poll() is None)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(WAIT_SECONDS)
            notifications.close()
        assert code == 0


def _mount(stack: ExitStack, *arguments: str, at: Path) -> None:
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(at)], check=True)
    stack.callback(subprocess.run, ["umount", "--recursive", str(at)], check=True)


@contextmanager
def root(directory: Path) -> Iterator[Root]:
    """Makes a root with a bpffs and a /run of its own, where the package was never installed."""
    with ExitStack() as stack:
        _mount(stack, "-t", "tmpfs", "tmpfs", at=directory / "memory")
        upper, work = (directory / "memory" / name for name in ("upper", "work"))
        for made in (upper, work):
            made.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        path = directory / "root"
        _mount(stack, "-t", "overlay", "-o", layers, "overlay", at=path)
        for name in ("dev", "proc", "sys"):
            _mount(stack, "--rbind", "--make-rslave", f"/{name}", at=path / name)
        _mount(stack, "-t", "tmpfs", "tmpfs", at=path / "run")
        (path / "run" / "netns").mkdir()
        _mount(stack, "-t", "bpf", "-o", "mode=700", "bpf", at=path / "sys/fs/bpf")
        found = Root(path)
        if os.path.exists("/var/lib/dpkg/info/bpfkeeperd.list"):
            found.run("dpkg", "--purge", "bpfkeeperd")
        for rest in ("etc/bpfkeeperd", "var/lib/bpfkeeperd"):
            shutil.rmtree(path / rest, ignore_errors=True)
        yield found
