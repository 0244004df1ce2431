"""The pipeline, run: manifest and objects, observation, plan, apply, and what is remembered."""

import functools
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace

from bpfkeeperd import kernel
from bpfkeeperd.actions import Plan
from bpfkeeperd.apply import Applied, apply
from bpfkeeperd.churn import IdChange, Memory, follow
from bpfkeeperd.desired import Desired, WantedObject
from bpfkeeperd.drift import drift
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError, ManifestError
from bpfkeeperd.held import Held
from bpfkeeperd.inner import with_inner_maps
from bpfkeeperd.layout import Layout, escape
from bpfkeeperd.lock import RootLock, letting_look, writing
from bpfkeeperd.manifest import parse_manifest, read_files
from bpfkeeperd.observe import check_pin_root, make_pin_root, observe
from bpfkeeperd.observed import Observed
from bpfkeeperd.plan import plan
from bpfkeeperd.resolve import resolve
from bpfkeeperd.snapshot import status
from bpfkeeperd.sources import Specs, lacking_hooks, read_sources
from bpfkeeperd.state import Failure, Outcome, ReloadResult, ReloadStatus, Status
from bpfkeeperd.statefile import read_state, state_path, write_state
from bpfkeeperd.steps import OnStep, Step
from bpfkeeperd.trial import Patience, Pause, sleep
from bpfkeeperd.withheld import former, withheld_versions, without

DURATION_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at everything, without changing it."""

    desired: Desired
    observed: Observed
    plan: Plan


def look(
    manifest: Manifest, memory: Memory, *, force: bool = False, withhold: bool = False
) -> Look:
    """What a reload of this manifest would find and do; for those who keep nothing.

    ``withhold``: what would be done without being asked to, which is not to try again what did not
    show its health.

    Raises:
        ManifestError, PinRootError, KernelError: as `resolve`, `check_pin_root` and `observe`.
    """
    with read_sources(manifest, {}) as sources:
        desired = resolve(
            manifest, sources.found, kernel.machine(), lacking=lacking_hooks(manifest, sources)
        )
        if withhold:
            desired = without(desired, memory.withheld)
    check_pin_root(manifest.pin_root)
    with Held() as held:
        last_ids = memory.last_ids(kernel.boot_id())
        observed = observe(desired, Layout(manifest.pin_root), held, last_ids)
    return Look(desired, observed, plan(desired, observed, force=force))


class Keeper:
    """Keeps the maps of one manifest: reloads it, and remembers what bpffs cannot.

    It holds the pin root and a descriptor of everything kept. `close` lets go of them, and leaves
    all that is pinned and attached as it is.

    Raises:
        ManifestError: the first manifest is wrong.
        PinRootError, BusyError: it cannot be kept at this pin root, or somebody else does.
    """

    def __init__(
        self, manifest_file: str, state_directory: str, on_step: OnStep, pause: Pause = sleep
    ) -> None:
        self.manifest_file = manifest_file
        self.status = Status()
        self.desired: Desired | None = None
        self.notes: list[str] = []
        self._on_step = on_step
        self._pause = pause
        self._texts: list[tuple[str, bytes]] = []
        self.manifest = manifest = self._read_manifest()
        self._layout = Layout(manifest.pin_root)
        make_pin_root(manifest.pin_root)
        self._lock = RootLock(manifest.pin_root)
        self._held = Held()
        self._specs: Specs = {}
        self._good: dict[str, WantedObject] = {}  # as last loaded
        self._state_path = state_path(state_directory, manifest.pin_root)
        self._memory, note = read_state(self._state_path)
        self._written = self._memory
        if note:
            self.notes.append(note)
        self._results: Counter[ReloadResult] = Counter()
        self._buckets = [0] * (len(DURATION_BUCKETS_SECONDS) + 1)
        self._seconds_sum = 0.0
        self._last_success: float | None = None
        self._reuses: Counter[str] = Counter()

    def reload(self, *, force: bool = False) -> tuple[Outcome, tuple[IdChange, ...]]:
        """One reload, from the manifest to the state file. Never raises a `KeeperError`."""
        started = time.monotonic()
        changes: tuple[IdChange, ...] = ()
        try:
            outcome, changes = self._reload(force)
        except ManifestError as error:
            kept = sum(found.id is not None for found in self.status.maps)
            failures = (Failure(str(error)),)
            outcome = Outcome(ReloadResult.REJECTED, failures=failures, kept_maps=kept)
        except KeeperError as error:
            outcome = Outcome(ReloadResult.FAILED, failures=(Failure(str(error)),))
        except OSError as error:
            text = f"cannot go on: {error.filename or 'a system call'}: {error.strerror}"
            outcome = Outcome(ReloadResult.FAILED, failures=(Failure(text),))
        seconds = time.monotonic() - started
        outcome = replace(outcome, duration_seconds=seconds)
        self._count(outcome)
        self.status = replace(self.status, reloads=self._reload_status())
        return outcome, changes

    def _reload(self, force: bool) -> tuple[Outcome, tuple[IdChange, ...]]:
        manifest = self._read_manifest()
        if manifest.pin_root != self.manifest.pin_root:
            raise KeeperError(
                f"the manifest's pin_root is now {manifest.pin_root}; it cannot change while the"
                f" keeper runs: restart it, or go back to {self.manifest.pin_root}"
            )
        with read_sources(manifest, self._specs) as sources:
            lacking = lacking_hooks(manifest, sources)
            desired = resolve(manifest, sources.found, kernel.machine(), self._good, lacking)
            make_pin_root(manifest.pin_root)
            self._lock.refresh()
            with writing(self._layout.own) as lock:
                observed = self._observe(desired)
                todo = plan(desired, observed, force=force)
                applied = apply(
                    todo,
                    observed,
                    self._layout,
                    held=self._held,
                    open_object=sources.open,
                    on_step=self._on_step,
                    patience=Patience(self._pause, functools.partial(letting_look, lock)),
                )
        if manifest.metrics_listen != self.manifest.metrics_listen:
            applied.notes.append("metrics.listen has changed: it takes effect with a restart")
        withheld = {}
        if applied.unhealthy:
            withheld = withheld_versions(todo, applied.unhealthy)
            desired = former(self.desired, desired, withheld)
        self.manifest, self.desired = desired.manifest, desired
        self._memory = replace(self._memory, withheld=withheld)
        self._reuses.update(todo.kept_maps)
        left = replace(todo, restores=(), changes=(), removals=())
        changes: tuple[IdChange, ...] = ()
        try:
            changes = self._take_stock(desired, applied, left)
        except KeeperError as error:  # what was done is done, and has to be told
            applied.failures.append(Failure(f"cannot look at what is now: {error}"))
        if todo.changes:
            kernel.release_memory()
        refusals = tuple(str(refusal) for refusal in todo.refusals)
        failed = applied.failures or refusals
        outcome = Outcome(
            ReloadResult.FAILED if failed else ReloadResult.OK,
            done=tuple(applied.done),
            failures=tuple(applied.failures),
            refusals=refusals,
            notes=tuple(applied.notes),
            kept_maps=len(todo.kept_maps),
            rolled_back=applied.rolled_back,
        )
        return outcome, changes

    def _read_manifest(self) -> Manifest:
        """The manifest of now; the same text is not parsed again."""
        texts = read_files(self.manifest_file)
        if texts != self._texts:
            manifest = parse_manifest(texts)
            self._texts, self._parsed = texts, manifest
        return self._parsed

    def look(self) -> tuple[IdChange, ...]:
        """Observes what is now, for status, drift and ID changes; changes nothing.

        Raises:
            PinRootError, KernelError: the pin root cannot be read.
        """
        if self.desired is None:
            return ()
        check_pin_root(self.manifest.pin_root)
        observed = self._observe(self.desired)
        todo = plan(self.desired, observed)
        return self._take_stock(self.desired, Applied(observed=observed), todo)

    def _observe(self, desired: Desired) -> Observed:
        last_ids = self._memory.last_ids(kernel.boot_id())
        return observe(desired, self._layout, self._held, last_ids)

    def _take_stock(self, desired: Desired, applied: Applied, todo: Plan) -> tuple[IdChange, ...]:
        """Takes hold of what is now, counts ID changes and makes a new status.

        ``todo`` is what is still to be done.
        """
        observed = applied.observed
        if observed is None:
            observed = self._observe(desired)
            todo = plan(desired, observed)
        for name, wanted in desired.objects.items():
            if wanted.digest in observed.programs.get(escape(name), ()) and not wanted.fault:
                self._good[name] = wanted
        pinned = {name: found.pinned.id for name, found in observed.maps.items() if found.pinned}
        memory, changes = follow(
            self._memory,
            pinned,
            boot_id=kernel.boot_id(),
            made=applied.made_maps,
            recreated=applied.recreated_maps,
            renewed=applied.renewed_maps,
            renamed=applied.renamed_maps,
        )
        if memory != self._written:
            self._on_step(Step.WRITE_STATE, self._state_path)
            self._memory = self._written = memory
            try:
                write_state(self._state_path, memory)
            except KeeperError as error:  # the maps are kept all the same
                applied.notes.append(f"{error}: ID changes may be counted twice or not at all")
        self._held.follow(observed, self._layout)
        now = status(
            desired,
            observed,
            memory,
            reuses=self._reuses,
            drift=drift(todo),
            reloads=self._reload_status(),
        )
        self.status = with_inner_maps(now, self._layout)
        return changes

    def _count(self, outcome: Outcome) -> None:
        self._results[outcome.result] += 1
        self._seconds_sum += outcome.duration_seconds
        self._buckets[bisect_left(DURATION_BUCKETS_SECONDS, outcome.duration_seconds)] += 1
        if outcome.result is ReloadResult.OK:
            self._last_success = time.time()

    def _reload_status(self) -> ReloadStatus:
        total, buckets = 0, []
        bounds = (*DURATION_BUCKETS_SECONDS, float("inf"))
        for bound, count in zip(bounds, self._buckets, strict=True):
            total += count
            buckets.append((bound, total))
        return ReloadStatus(
            dict(self._results), self._seconds_sum, tuple(buckets), self._last_success
        )

    def close(self) -> None:
        """Lets go of the descriptors and of the pin root; what is pinned and attached stays."""
        self._held.close()
        self._lock.close()
