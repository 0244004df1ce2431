"""Programs on trial: their counters are read as they are swapped in, and until a verdict is due."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, assert_never

from bpfkeeperd import kernel
from bpfkeeperd.actions import Change
from bpfkeeperd.enact import Enactor
from bpfkeeperd.enactmaps import pinned_program
from bpfkeeperd.errors import KeeperError, error_text
from bpfkeeperd.health import Counter, MapCounter, Reading, Runs, Trial, judge, reading, value_bytes
from bpfkeeperd.layout import escape
from bpfkeeperd.load import Loaded
from bpfkeeperd.observed import ObservedMap
from bpfkeeperd.state import MapInfo
from bpfkeeperd.steps import Step

POLL_SECONDS = 0.05
"""How often counters are read."""

Pause = Callable[[float], bool]
"""Waits so many seconds, and lives meanwhile; False when there is no time to wait any more."""


class UnhealthyError(KeeperError):
    """A program did not show that it works."""


def sleep(seconds: float) -> bool:
    """For those who are told to stop by a KeyboardInterrupt, if at all."""
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Patience:
    """How to wait for a verdict."""

    pause: Pause = sleep
    letting_look: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered meanwhile."""


@dataclass(slots=True)
class _Case:
    trial: Trial
    program_fd: int | None
    """Where its runs are counted."""
    began: float
    before: dict[Counter, Reading] = field(default_factory=dict)


@dataclass(slots=True)
class Trials:
    """All programs of a reload that are on trial; a context manager that closes what it opened."""

    enactor: Enactor
    changes: Sequence[Change]
    no_runs: str = ""
    """Why runs cannot be counted."""
    notes: list[str] = field(default_factory=list)
    """Of programs that are fine."""
    _cases: list[_Case] = field(default_factory=list)
    _maps: dict[str, tuple[int, MapInfo]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Has runs counted from before the first swap, if anybody asks for them."""
        trials = [trial for change in self.changes for trial in change.trials]
        if any(_counts_runs(trial) for trial in trials):
            try:
                self.enactor.on_step(Step.COUNT_RUNS, "programs")
                self._stack.enter_context(kernel.counting_runs())
            except KeeperError as error:
                self.no_runs = str(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def check(self, change: Change) -> None:
        """Before a change: whether its programs can be judged at all.

        Raises:
            KeeperError: they cannot; nothing of it may be done.
        """
        for trial in change.trials:
            if self.no_runs and _counts_runs(trial):
                raise KeeperError(
                    f"object {trial.object}: the health of program {trial.program} cannot be"
                    f" judged: {self.no_runs}; name a counter of a map in place of runs"
                )

    def begin(self, loaded: Loaded) -> None:
        """Right after a change: reads where its counters stand.

        Raises:
            UnhealthyError: a counter cannot be read.
        """
        try:
            self._begin(loaded)
        except KeeperError as error:
            names = ", ".join(f"{trial.object}/{trial.program}" for trial in loaded.change.trials)
            raise UnhealthyError(f"the health of {names} cannot be judged: {error}") from None

    def _begin(self, loaded: Loaded) -> None:
        for name, fd in loaded.new_maps.items():
            self._maps[name] = (fd, kernel.map_info(fd))
            # Who counts in this map began with the one before it.
            for case in self._cases:
                case.before |= self._read(case, _of_map(case.trial, name))
        for trial in loaded.change.trials:
            case = _Case(trial, self._program_fd(trial, loaded), time.monotonic())
            case.before |= self._read(case, trial.health.counters)
            self._cases.append(case)

    def verdict(self, pause: Pause) -> str:
        """Waits for all verdicts, or for the first that is bad; empty: all programs are fine."""
        if not self._cases:
            return ""
        waiting = list(self._cases)
        names = ", ".join(f"{case.trial.object}/{case.trial.program}" for case in waiting[:3])
        try:
            self.enactor.reload.wait()
            self.enactor.on_step(Step.TRIAL, names)
            while True:
                faults, waiting = self._judge(waiting)
                if faults or not waiting:
                    return "; ".join(faults)
                left = min(case.trial.health.seconds - _age(case) for case in waiting)
                if not pause(max(0.001, min(POLL_SECONDS, left))):
                    return f"the keeper was told to stop before the health of {names} was known"
        except (KeeperError, OSError) as error:
            return f"the health of {names} cannot be judged: {error_text(error)}"

    def _judge(self, cases: Iterable[_Case]) -> tuple[list[str], list[_Case]]:
        """What is wrong, and who has to wait."""
        faults, waiting = [], []
        for case in cases:
            age = _age(case)  # before the counters: what they show was there in time
            now = self._read(case, case.trial.health.counters)
            verdict = judge(case.trial, age, case.before, now)
            if verdict.fault:
                faults.append(verdict.fault)
            elif verdict.over:
                self.notes.append(verdict.note)
            else:
                waiting.append(case)
        return faults, waiting

    def _read(self, case: _Case, counters: Iterable[Counter]) -> Mapping[Counter, Reading]:
        found: dict[Counter, Reading] = {}
        for counter in counters:
            match counter:
                case MapCounter():
                    found[counter] = self._read_map(counter)
                case Runs():
                    fd = case.program_fd
                    found[counter] = kernel.program_stats(fd).run_count if fd is not None else 0
                case _:
                    assert_never(counter)
        return found

    def _read_map(self, counter: MapCounter) -> Reading:
        found = self._maps.get(counter.map) or self._open(counter.map)
        if found is None:  # another change is to make it, and empty it will be
            return reading(counter, None, counter.offset + counter.size)
        fd, info = found
        each, size = value_bytes(info.type, info.value_size, kernel.possible_cpus())
        return reading(counter, kernel.map_lookup(fd, counter.key, size), each)

    def _open(self, name: str) -> tuple[int, MapInfo] | None:
        """A map that was there before; None when there was none."""
        enactor = self.enactor
        found = enactor.observed.maps.get(name, ObservedMap())
        known = found.pinned or found.lost
        if known is None:
            return None
        fd = enactor.held.map_fd(name, known.id)
        if fd is not None:
            self._maps[name] = (fd, known)
            return self._maps[name]
        for path in (name, found.source):  # it may have been renamed meanwhile
            opened = kernel.pinned_map(enactor.layout.map(path)) if path else None
            if opened:
                self._stack.callback(os.close, opened[0])
                if opened[1].id == known.id:
                    self._maps[name] = opened
                    return opened
        raise KeeperError(f"map {name} was exchanged while the reload went on: reload again")

    def _program_fd(self, trial: Trial, loaded: Loaded) -> int | None:
        """Only where its runs matter."""
        if not _counts_runs(trial):
            return None
        # The kernel counts what it runs: a stub, not what that calls.
        stub = self.enactor.parts.stubs.ready_fd((escape(trial.object), escape(trial.program)))
        if stub is not None:
            return stub
        opened = loaded.objects.get(trial.object)
        if opened:
            return opened.program_fd(trial.program)
        enactor = self.enactor
        fd = pinned_program(enactor.layout, enactor.observed, trial.object, trial.program)
        if fd is None:
            raise KeeperError(f"program {trial.object}/{trial.program} is not pinned any more")
        self._stack.callback(os.close, fd)
        return fd


def _counts_runs(trial: Trial) -> bool:
    return isinstance(trial.health.moves, Runs)


def _of_map(trial: Trial, name: str) -> list[Counter]:
    """The counters of a program that are in a map."""
    return [
        counter
        for counter in trial.health.counters
        if isinstance(counter, MapCounter) and counter.map == name
    ]


def _age(case: _Case) -> float:
    return time.monotonic() - case.began
