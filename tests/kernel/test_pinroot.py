"""The pin root and the own directory in it: nobody else may be able to exchange what is there."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from bpfkeeperd import apply as apply_module
from bpfkeeperd import keeper as keeper_module
from bpfkeeperd import kernel
from bpfkeeperd.errors import PinRootError
from bpfkeeperd.pinroot import check_pin_root, make_own, make_pin_root, open_own, open_root
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.trust import Trust
from tests.machine import inside_cgroup
from tests.scenario import World, check_still_served, refused

ALICE = 12345


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def writable_by_group(own: Path) -> str:
    own.mkdir()
    own.chmod(0o770)
    return f"(drwxrwx---, user 0): see who put what there, then chmod 0700 {own}"


def readable_by_others(own: Path) -> str:
    own.mkdir()
    own.chmod(0o701)
    return f"(drwx-----x, user 0): see who put what there, then chmod 0700 {own}"


def of_somebody_else(own: Path) -> str:
    own.mkdir(mode=0o700)
    os.chown(own, ALICE, ALICE)
    return f"(drwx------, user {ALICE}): run as that user, or move it away if nobody knows it"


def a_link_to_one_of_ours(own: Path) -> str:
    (own.parent / "other").mkdir(mode=0o700)
    own.symlink_to("other")
    return "(lrwxrwxrwx, user 0): run as that user, or move it away if nobody knows it"


def a_link_to_nowhere(own: Path) -> str:
    own.symlink_to("nowhere")
    return "(lrwxrwxrwx, user 0): run as that user, or move it away if nobody knows it"


def a_map(own: Path) -> str:
    with kernel.holding(kernel.map_create(2, "m", 4, 8, 1)) as fd:
        kernel.pin(fd, str(own))
    return "(-rw-------, user 0): run as that user, or move it away if nobody knows it"


STRANGE = [
    writable_by_group,
    readable_by_others,
    of_somebody_else,
    a_link_to_one_of_ours,
    a_link_to_nowhere,
    a_map,
]


@pytest.mark.parametrize("make", STRANGE)
def test_what_is_no_own_directory(bpffs: Path, make: Callable[[Path], str]) -> None:
    own = bpffs / "bpfkeeperd"
    expected = f"{own} is not a directory of this user alone {make(own)}"
    for function in (check_pin_root, make_pin_root, open_own, make_own):
        if function is make_own and make is a_link_to_nowhere:
            continue  # mkdir finds it there, too
        with pytest.raises(PinRootError) as caught:
            function(str(bpffs))
        assert str(caught.value) == expected, function


def test_an_own_directory_on_something_else(bpffs: Path) -> None:
    own = bpffs / "bpfkeeperd"
    own.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(own)], check=True)
    try:
        with pytest.raises(PinRootError, match=f"{own} is not on a bpffs: unmount what is"):
            check_pin_root(str(bpffs))
    finally:
        subprocess.run(["umount", str(own)], check=True)
    assert check_pin_root(str(bpffs))


@pytest.mark.parametrize("check", [check_pin_root, make_pin_root, open_root])
def test_a_pin_root_that_others_can_change(bpffs: Path, check: Callable[..., object]) -> None:
    for mode, who in ((0o777, "everybody"), (0o770, "group root")):
        bpffs.chmod(mode)
        with pytest.raises(PinRootError) as caught:
            check(str(bpffs))
        remedy = f"chmod g{'o' if mode == 0o777 else ''}-w {bpffs}"
        assert str(caught.value) == (
            f"cannot pin in {bpffs}: {bpffs} is writable by {who} (mode {mode:04o}): {remedy}"
        )
    bpffs.chmod(0o700)
    os.chown(bpffs, ALICE, ALICE)
    with pytest.raises(PinRootError) as caught:
        check(str(bpffs))
    assert str(caught.value).startswith(
        f"cannot pin in {bpffs}: {bpffs} belongs to user {ALICE} (mode 0700): chown root {bpffs}"
    )


def test_a_pin_root_in_a_directory_of_somebody_else(tmp_path: Path, bpffs: Path) -> None:
    """He could exchange what it is in; a pin root to be made is judged likewise."""
    os.chown(tmp_path, ALICE, ALICE)
    for root in (f"{bpffs}", f"{bpffs}/new"):
        with pytest.raises(PinRootError, match=f"{tmp_path} belongs to user {ALICE}"):
            make_pin_root(root)
    assert not (bpffs / "new").exists()
    make_pin_root(f"{bpffs}/new", Trust(frozenset({ALICE})))
    assert check_pin_root(f"{bpffs}/new", Trust(frozenset({ALICE})))


def test_a_root_that_everybody_may_write_to(world: World) -> None:
    """As a bpffs is that was mounted by hand. What others make there is theirs; what is ours they
    can neither move nor look into."""
    assert world.pins.stat().st_mode & 0o7777 == 0o1777
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper, inside_cgroup(world.cgroup):
        assert world.reload(keeper).result is ReloadResult.OK
        # By descriptor, because pytest's own directories above are for root alone.
        with kernel.holding(os.open(world.pins, os.O_RDONLY)) as pins, as_user(ALICE):
            os.mkdir("theirs", dir_fd=pins)
            with pytest.raises(PermissionError):
                os.rename("bpfkeeperd", "theirs/moved", src_dir_fd=pins, dst_dir_fd=pins)
            with pytest.raises(PermissionError):
                os.rename("theirs", "bpfkeeperd", src_dir_fd=pins, dst_dir_fd=pins)
            with pytest.raises(PermissionError):
                os.open("bpfkeeperd", os.O_RDONLY, dir_fd=pins)
            for place in ("staging", "links/planted", "links/one/count/planted"):
                with pytest.raises(PermissionError):
                    os.symlink("/", f"bpfkeeperd/{place}", dir_fd=pins)
        assert world.reload(keeper, force=True).result is ReloadResult.OK
        check_still_served(world)


@pytest.mark.parametrize("owner", [0, ALICE])
@pytest.mark.parametrize(
    ("module", "name"), [(keeper_module, "plan"), (apply_module, "has_own")], ids=["plan", "apply"]
)
def test_planted_after_the_look(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    owner: int,
) -> None:
    """Between the look that finds no own directory and its making: a link to somewhere else."""
    world.put("one")
    world.write_counter("one")
    victim = tmp_path / "victim"
    for directory in ("staging", "links", "leftover"):
        (victim / directory).mkdir(parents=True)
        (victim / directory / "precious").touch()
    with world.keeper() as keeper:
        really = getattr(module, name)

        def plant(*arguments: object, **options: object) -> object:
            found = really(*arguments, **options)
            if not os.path.lexists(world.layout.own):
                os.symlink(victim, world.layout.own)
                os.chown(world.layout.own, owner, owner, follow_symlinks=False)
            return found

        monkeypatch.setattr(module, name, plant)
        text = refused(world.reload(keeper))
        assert f"{world.layout.own} is not a directory of this user alone (lrwxrwxrwx" in text
        assert sorted(os.listdir(victim)) == ["leftover", "links", "staging"]
        assert all((victim / kept / "precious").exists() for kept in os.listdir(victim))
        monkeypatch.undo()
        os.unlink(world.layout.own)
        assert world.reload(keeper).result is ReloadResult.OK


def test_a_root_that_is_given_away_while_the_keeper_runs(world: World) -> None:
    world.put("one")
    world.write_counter("one")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        map_id, links = world.map_id(), world.link_ids()
        os.chown(world.pins, ALICE, ALICE)
        assert f"{world.pins} belongs to user {ALICE}" in refused(world.reload(keeper, force=True))
        with pytest.raises(PinRootError, match=f"{world.pins} belongs to user {ALICE}"):
            keeper.look()
        os.chown(world.pins, 0, 0)
        assert (world.map_id(), world.link_ids()) == (map_id, links)
        assert world.reload(keeper).result is ReloadResult.OK


def test_an_object_that_somebody_else_could_change(world: World) -> None:
    """Holds that object alone, and heals when the cause goes."""
    for name in ("one", "two"):
        world.put(name)
    world.write_counter("one", "two")
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        for name in ("one", "two"):
            world.put(name, STEP=2)
        path = world.directory / "one.bpf.o"
        path.chmod(0o666)
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.FAILED
        (refusal,) = outcome.refusals
        assert refusal == (
            f"object one: cannot read {path}: {path} is writable by everybody (mode 0666): chmod"
            f" go-w {path}"
        )
        now = world.link_ids()
        assert {path for path in links if links[path] == now[path]} == {
            path for path in links if path.startswith("one/")
        }
        path.chmod(0o644)
        assert world.reload(keeper).result is ReloadResult.OK
        assert all(links[path] != found for path, found in world.link_ids().items())
