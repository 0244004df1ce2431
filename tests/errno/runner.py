"""Runs cases of one scenario, each in a process of its own: calls fail, and all is looked at.

Started with the shim preloaded; what to do comes as JSON on standard input, the findings go out as
JSON.
"""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bpfkeeperd.churn import Memory
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.keeper import Keeper
from bpfkeeperd.keeper import look as look_at_plan
from bpfkeeperd.state import ReloadResult
from bpfkeeperd.statefile import read_state, state_path
from bpfkeeperd.unload import unload
from tests.errno.scenarios import SCENARIOS, Act, Scenario, die_at, new_keeper
from tests.errno.seen import Seen, look
from tests.errno.shim import Call, Shim, Shot
from tests.errno.words import SPENT, faults
from tests.scenario import World

ERRNOS = (errno.EPERM, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN, errno.EINTR)
HUNG_SECONDS = 30
LAST = 1 << 30
Result = TypeVar("Result")


@dataclass(slots=True)
class Done:
    """What came of the act."""

    ok: bool
    text: str
    notes: str = ""
    rolled_back: bool = False


class Bench:
    """One scenario in one world."""

    def __init__(self, name: str, world: World, mount: Path, netns: str) -> None:
        self.scenario: Scenario = SCENARIOS[name]
        self.world = world
        self.shim = Shim(mount)
        self.netns = netns
        self.keeper: Keeper | None = None

    # ---- before and after a case ----

    def wipe(self) -> None:
        """Nothing is pinned, attached or remembered."""
        for directory, below, names in os.walk(self.world.pins, topdown=False):
            for name in names:
                os.unlink(os.path.join(directory, name))
            for name in below:
                os.rmdir(os.path.join(directory, name))
        with suppress(FileNotFoundError):
            os.rmdir(self.world.pins)
        shutil.rmtree(self.world.state_directory)
        os.mkdir(self.world.state_directory)
        if self.netns:
            command = ["tc", "-n", self.netns, "qdisc", "del", "dev", "veth0", "clsact"]
            subprocess.run(command, check=False, capture_output=True)
            self._wait_for_xdp()

    def _wait_for_xdp(self) -> None:
        """The kernel takes a link down some time after its pin."""
        deadline = time.monotonic() + 30
        command = ["ip", "-n", self.netns, "link", "show", "dev", "veth0"]
        while "xdp" in subprocess.run(command, check=True, capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, "a program is there yet"
            time.sleep(0.01)

    def look(self) -> Seen:
        elsewhere = {}
        if self.netns:
            command = ["tc", "-n", self.netns, "filter", "show", "dev", "veth0", "ingress"]
            shown = subprocess.run(command, check=False, capture_output=True, text=True).stdout
            elsewhere["filters"] = str(shown.count(" bpf "))
        return look(self.world, elsewhere)

    def begin(self) -> None:
        if self.scenario.begin is None:
            return
        self.scenario.begin(self.world)
        self.keeper = new_keeper(self.world)
        outcome, _ = self.keeper.reload()
        assert outcome.result is ReloadResult.OK, outcome
        if self.scenario.act in (Act.START, Act.UNLOAD):
            self.close()

    def change(self) -> None:
        self.scenario.change(self.world)
        if self.scenario.killed_at:
            die_at(self.world, self.scenario.killed_at)

    def close(self) -> None:
        if self.keeper:
            self.keeper.close()
        self.keeper = None

    # ---- the act ----

    def act(self) -> Done:
        """What calls fail in; KeeperErrors are an answer, everything else is a bug."""
        try:
            match self.scenario.act:
                case Act.RELOAD | Act.START:
                    return self._reload()
                case Act.HEAL:
                    assert self.keeper
                    healed = self.keeper.heal(1000.0)
                    done = bool(healed.actions) and all(action.done for action in healed.actions)
                    text = "\n".join(healed.notes)
                    return Done(done, "" if done else text, text if done else "")
                case Act.UNLOAD:
                    memory = self._memory()
                    unload(self.world.layout, memory, with_maps=True)
                    return Done(True, "")
        except KeeperError as error:
            return Done(False, str(error))

    def _memory(self) -> Memory:
        return read_state(state_path(self.world.state_directory, str(self.world.pins)))[0]

    def _reload(self) -> Done:
        if self.keeper is None:
            self.keeper = new_keeper(self.world)
        outcome, _ = self.keeper.reload()
        failures = [failure.message for failure in outcome.failures]
        return Done(
            outcome.result is ReloadResult.OK,
            "\n".join((*failures, *outcome.refusals)),
            "\n".join((*outcome.notes, *self.keeper.notes)),
            outcome.rolled_back,
        )

    # ---- cases ----

    def clean(self) -> tuple[list[Call], Seen, Seen]:
        """The calls of the act when none fails, and what is seen before and after it."""
        self.begin()
        self.change()
        before = self.look()
        with self.shim.armed(None):
            done = self.act()
        calls = self.shim.calls()
        assert done.ok, done
        after = self.look()
        self.close()
        return calls, before, after

    def case(self, shot: Shot, final: Seen) -> tuple[str, list[str], Seen | None]:
        """The call that failed, and what is wrong after it. What was seen before comes along where
        what follows is for another process to do."""
        descriptors = _descriptors()
        self.begin()
        self.change()
        before = self.look()
        wrong: list[str] = []
        with self.shim.armed(shot):
            try:
                done = self.act()
            except BaseException:
                wrong.append(traceback.format_exc())
                done = Done(False, "")
        failed = [call for call in self.shim.calls() if call.failed]
        if not failed:
            return "", [], None
        after = self.look()
        single = shot.first == shot.last
        spent = SPENT in done.text
        if wrong:
            pass
        elif done.ok and self.scenario.act is Act.HEAL:  # what it could not see it leaves
            wrong += self._check_failed(before, after, final, done, single)
        elif done.ok:
            wrong += self._check_done(after, final, done)
        else:
            wrong += self._check_failed(before, after, final, done, single)
            if single and not spent:
                wrong += faults(failed[0], shot.errno, done.text)
            elif "cannot" not in done.text:
                wrong.append("it does not say what cannot be done")
        if not spent:
            wrong += self._check_converges(before, final)
        self.close()
        left = _descriptors() - descriptors
        if left:
            wrong.append(f"descriptors left open: {left}")
        if wrong:
            wrong.append(f"it said: {done.text or '(done)'}; notes: {done.notes}")
        return str(failed[0]), wrong, before if spent else None

    def afterwards(self, before: Seen, final: Seen) -> list[str]:
        """What is wrong with what a new process does after a case."""
        wrong = self._check_converges(before, final)
        self.close()
        return wrong

    def _check_done(self, after: Seen, final: Seen, done: Done) -> list[str]:
        differing = _differences(after.told, final.told)
        if differing and done.notes:
            return []
        return [f"said to be done, but is not: {differing}"] if differing else []

    def _check_failed(
        self, before: Seen, after: Seen, final: Seen, done: Done, single: bool
    ) -> list[str]:
        """Each change is wholly done or not at all."""
        if done.rolled_back and after.raw != before.raw and single:
            return [f"rolled back, but differs: {_differences(after.raw, before.raw)}"]
        names = {*before.raw, *after.raw, *final.told}
        groups = [group for group in self.scenario.changes if group & names]
        grouped = {name for group in groups for name in group}
        groups += [frozenset({name}) for name in names - grouped]
        wrong = []
        for group in groups:
            as_before = all(after.raw.get(name) == before.raw.get(name) for name in group)
            as_wanted = all(self._as_wanted(name, before, after, final) for name in group)
            if (
                not as_before
                and not as_wanted
                and not self._on_its_way(group, before, after, final)
            ):
                if not single and "could not be undone" in done.text:
                    continue
                wrong.append(
                    f"neither as before nor as wanted: {sorted(group)}:"
                    f" {_differences(_of(after.raw, group), _of(before.raw, group))}"
                )
        return wrong

    def _as_wanted(self, name: str, before: Seen, after: Seen, final: Seen) -> bool:
        """Something of what was there before may not have gone."""
        now, wanted = after.told.get(name, {}), final.told.get(name, {})
        more = {key: found for key, found in after.raw.get(name, {}).items() if key not in wanted}
        same = all(now.get(key) == found for key, found in wanted.items())
        return same and _is_part(more, before.raw.get(name, {}))

    def _on_its_way(self, group: frozenset[str], before: Seen, after: Seen, final: Seen) -> bool:
        """What goes, goes piece by piece, and what is restored comes back so. A start makes
        directories first."""
        (name, *others) = group
        if others:
            return False
        was, now, wanted = (seen.get(name, {}) for seen in (before.raw, after.raw, final.told))
        if self.scenario.act is Act.HEAL:
            return set(was) <= set(now) <= set(wanted)
        if self.scenario.act is Act.UNLOAD:  # a link is detached before its pin goes
            return set(now) <= set(was)
        return not wanted and _is_part(now, was)

    def _check_converges(self, before: Seen, final: Seen) -> list[str]:
        """What follows goes well, and leads where it should; then there is nothing to do."""
        again = self._again()
        if not again.ok:
            return [f"what follows fails: {again.text}"]
        after = self.look()
        wrong = []
        if after.passing:
            wrong.append(f"left after what follows: {after.passing}")
        if differing := _differences(after.told, final.told):
            wrong.append(f"what follows leads elsewhere: {differing}")
        if after.directories != final.directories:
            wrong.append(f"directories: {after.directories ^ final.directories}")
        wrong += self._check_same_maps(before, after, final)
        if self.scenario.act is not Act.UNLOAD:
            todo = look_at_plan(self.keeper.manifest, self._memory()).plan if self.keeper else None
            if todo and todo.actions:
                wrong.append(f"there is something to do yet: {[*map(str, todo.actions)]}")
        return wrong

    def _again(self) -> Done:
        with suppress(KeeperError):
            if self.scenario.act is Act.UNLOAD:
                return self.act()
            return self._reload()
        return Done(False, "an error")

    def _check_same_maps(self, before: Seen, after: Seen, final: Seen) -> list[str]:
        """Kept maps are the same ones with the same contents (I1)."""
        wrong = []
        for name, was in before.raw.items():
            if not name.startswith("map ") or name not in self.kept:
                continue
            now = after.raw.get(name)
            if now != was:
                wrong.append(f"{name} was {was}, is {now}")
        return wrong

    kept: frozenset[str] = frozenset()
    """Maps that a clean act leaves as they are."""


def _is_part(some: dict[str, object], whole: dict[str, object]) -> bool:
    return all(key in whole and whole[key] == found for key, found in some.items())


def _of(seen: dict[str, dict[str, object]], group: frozenset[str]) -> dict[str, dict[str, object]]:
    return {name: found for name, found in seen.items() if name in group}


def _differences(
    mine: dict[str, dict[str, object]], others: dict[str, dict[str, object]]
) -> list[str]:
    found = []
    for name in sorted({*mine, *others}):
        here, there = mine.get(name, {}), others.get(name, {})
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                found.append(f"{name}: {key}: {here.get(key)!s:.60} for {there.get(key)!s:.60}")
    return found


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return {(fd, target) for fd, target in found if "/proc/" not in target}


def shots(calls: Sequence[Call], stride: int) -> Iterator[Shot]:
    """Those that are tried: every call with every errno (0), or each ``stride``-th with one in
    turn; and some after which nothing works any more."""
    every = not stride
    listing = 0
    for place, call in enumerate(calls):
        # A list of all links of the machine is as long as others make it: its begin will do.
        listing = listing + 1 if call.name.startswith("LINK_GET") else listing
        if listing > 4 and call.name.startswith("LINK_GET"):
            continue
        for turn, number in enumerate(ERRNOS):
            if every or (place % stride == 0 and place // stride % len(ERRNOS) == turn):
                yield Shot(place, place, number)
    for place in range(0, len(calls), 7 if every else 61):
        for turn, number in enumerate((errno.EPERM, errno.ENOMEM)):
            if every or place % 2 == turn:
                yield Shot(place, LAST, number)


def in_child(work: Callable[[], Result]) -> Result | str:
    """Does something in a process of its own, so that what it remembers is not there in the next;
    a text tells how it ended."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        signal.alarm(HUNG_SECONDS)
        try:
            result: Result | str = work()
        except BaseException:
            result = traceback.format_exc()
        with os.fdopen(writer, "wb") as file:
            pickle.dump(result, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        return f"the process ended with {status}"
    found: Result | str = pickle.loads(data)
    return found


def find(bench: Bench, shot: Shot, final: Seen) -> str:
    """What is wrong with a case; empty when nothing is."""
    found = in_child(lambda: bench.case(shot, final))
    if isinstance(found, str):
        return f"{shot}: {found}"
    call, wrong, before = found
    if before:
        after = in_child(lambda: bench.afterwards(before, final))
        wrong += [after] if isinstance(after, str) else after
    return f"{shot} of {call}:\n  " + "\n  ".join(wrong) if wrong else ""


def main() -> None:
    asked = json.load(sys.stdin)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that calls have one order
    objects = {(name, *map(tuple, macros)): Path(path) for name, macros, path in asked["objects"]}

    def build(name: str, **macros: object) -> Path:
        return objects[(name, *((macro, str(macros[macro])) for macro in sorted(macros)))]

    mount = Path(asked["mount"])
    world = World(Path(asked["directory"]), mount / "keeper", Path(asked["cgroup"]), build)
    bench = Bench(asked["scenario"], world, mount, asked["netns"])
    if bench.scenario.begin:
        bench.clean()  # libbpf has found out what the kernel can
        bench.wipe()
        calls, before, final = bench.clean()
    else:
        clean = in_child(bench.clean)
        assert not isinstance(clean, str), clean
        calls, before, final = clean
    bench.kept = frozenset(
        name for name, found in before.raw.items() if found == final.raw.get(name)
    )
    bench.wipe()
    findings, tried = [], 0
    for shot in shots(calls, asked["stride"]):
        if asked["only"] and shot.first not in asked["only"]:
            continue
        tried += 1
        findings += [found] if (found := find(bench, shot, final)) else []
        bench.wipe()
    findings = [finding.replace(str(world.pins), "PINS") for finding in findings]
    json.dump({"calls": [*map(str, calls)], "tried": tried, "findings": findings}, sys.stdout)


if __name__ == "__main__":
    main()
