"""Files that somebody else could change, in the eyes of the daemon and the commands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bpfkeeperd.__main__ import main
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import NO_METRICS, ROOT, cli

ALICE = 12345


def write_one(world: World) -> None:
    world.put("one")
    world.write_counter("one", extra=NO_METRICS)


def test_a_manifest_that_becomes_somebody_elses(world: World, start: Start) -> None:
    """It is rejected, the running one stays; when it is root's again all is well."""
    write_one(world)
    daemon = start()
    map_id, links = world.map_id(), world.link_ids()
    world.write("objects: {}\n")
    os.chown(world.manifest_file, ALICE, ALICE)
    done = daemon.reload()
    assert done.returncode == 1
    assert (
        f"cannot read manifest {world.manifest_file}: {world.manifest_file} belongs to user"
        f" {ALICE} (mode 0644): chown root {world.manifest_file}, or take what that user can change"
        f" with --trust {ALICE}"
    ) in done.stdout
    assert "manifest rejected: nothing was changed" in done.stdout
    assert "rejected" in daemon.hup()
    assert (world.map_id(), world.link_ids()) == (map_id, links)
    os.chown(world.manifest_file, 0, 0)
    assert daemon.reload().returncode == 0
    assert world.link_ids() == {}
    assert daemon.stop() == 0


def test_a_start_with_a_manifest_of_somebody_else(world: World, start: Start) -> None:
    write_one(world)
    (world.directory / "conf.d").mkdir()
    (world.directory / "conf.d").chmod(0o1777)
    daemon = start(ready=False)
    assert daemon.wait_exit() == 78
    assert f"{world.directory}/conf.d is writable by everybody (mode 1777)" in daemon.log
    assert not os.path.lexists(world.layout.own)


COMMANDS = {
    **dict.fromkeys(("check", "plan", "apply", "status", "maps", "metrics", "unload"), ()),
    "dump": ("counts",),
    "wait": ("counts", "--id", "0"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_a_manifest(
    world: World, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write_one(world)
    world.apply()
    for path in (world.manifest_file, world.directory / "one.bpf.o"):
        os.chown(path, ALICE, ALICE)
        path.chmod(0o664)  # as with umask 002
    arguments = [command, *COMMANDS[command], "-c", str(world.manifest_file)]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(
        f"cannot read manifest {world.manifest_file}: {world.manifest_file} belongs to user {ALICE}"
    )
    if command in ("dump", "apply"):  # these take standard output, and SIGTERM, for themselves
        done = cli(world, command, *COMMANDS[command], "--trust", str(ALICE))
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert main([*arguments, "--trust", str(ALICE)]) == 0
    assert capsys.readouterr().err == ""


def test_the_option_of_the_daemon(world: World, start: Start) -> None:
    write_one(world)
    for path in (world.manifest_file, world.directory / "one.bpf.o"):
        os.chown(path, ALICE, ALICE)
    daemon = start(options=["--trust", "0", "--trust", str(ALICE)])
    assert len(world.link_ids()) == 1
    done = daemon.reload()
    assert done.returncode == 0, "reload itself reads nothing: it needs no option"
    assert daemon.stop() == 0


def test_a_user_that_is_not_there(world: World) -> None:
    done = cli(world, "check", "--trust", "nobody-of-that-name")
    assert done.returncode == 2
    assert "argument --trust: there is no user 'nobody-of-that-name'" in done.stderr


def test_the_demonstration_names_the_owner_of_its_checkout(tmp_path: Path) -> None:
    """Whose ever it is: root's daemon takes it, and the commands to try work as they are shown."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "config/demo", checkout / "config/demo")
    script = 'cd "$0" && . config/demo/places.sh && echo "$options"'
    for uid, option in ((0, ""), (ALICE, f" --trust {ALICE}"), (65534, " --trust nobody")):
        os.chown(checkout, uid, uid)
        done = subprocess.run(
            ["bash", "-c", script, str(checkout)], capture_output=True, text=True, check=True
        )
        assert done.stdout == f"--config config/demo/bpfkeeperd.yaml{option}\n"
    for name in ("run", "clean"):
        text = (ROOT / "config/demo" / name).read_text()
        assert "$options" in text and "--config" not in text
