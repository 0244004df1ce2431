"""The pipeline, run: manifest and objects, observation, plan, apply, and what is remembered."""

import functools
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from bpfkeeperd import kernel
from bpfkeeperd.accounts import with_accounts
from bpfkeeperd.actions import Plan
from bpfkeeperd.apply import Applied, apply, together
from bpfkeeperd.churn import IdChange, Memory
from bpfkeeperd.compare import Machine
from bpfkeeperd.conflicts import undecided, with_conflicts
from bpfkeeperd.desired import Desired, ObjectSource, WantedObject
from bpfkeeperd.drift import differences
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError, ManifestError
from bpfkeeperd.fdstore import Kept
from bpfkeeperd.healer import Healed, Healer, read_for_healing
from bpfkeeperd.held import Held
from bpfkeeperd.hooks import Hook
from bpfkeeperd.inner import with_inner_maps
from bpfkeeperd.layout import Layout, escape
from bpfkeeperd.ledger import Ledger, adopted_links, followed
from bpfkeeperd.lock import RootLock, letting_look, writing
from bpfkeeperd.manifest import parse_manifest, read_files
from bpfkeeperd.marks import marked
from bpfkeeperd.matches import with_matches
from bpfkeeperd.observe import observe
from bpfkeeperd.observed import Observed
from bpfkeeperd.observeforeign import with_foreign
from bpfkeeperd.pinroot import check_pin_root, make_pin_root, open_own, open_root
from bpfkeeperd.plan import plan
from bpfkeeperd.resolve import resolve
from bpfkeeperd.snapshot import status
from bpfkeeperd.sources import Sources, Specs, lacking_hooks, read_sources
from bpfkeeperd.state import Failure, Outcome, ReloadResult, ReloadStatus, Status
from bpfkeeperd.steps import OnStep
from bpfkeeperd.stored import Stored, kept
from bpfkeeperd.trial import Patience, Pause, sleep
from bpfkeeperd.trust import NOBODY_ELSE, Trust
from bpfkeeperd.watch import Places, places
from bpfkeeperd.withheld import former, withheld_versions, without

DURATION_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at everything, without changing it."""

    desired: Desired
    observed: Observed
    plan: Plan
    memory: Memory
    """With what has changed since it was written."""


def look(
    manifest: Manifest,
    memory: Memory,
    trust: Trust = NOBODY_ELSE,
    *,
    force: bool = False,
    withhold: bool = False,
) -> Look:
    """What a reload of this manifest would find and do; for those who keep nothing.

    ``withhold``: what would be done without being asked to, which is not to try again what did not
    show its health.

    Raises:
        ManifestError, PinRootError, KernelError: as `resolve`, `check_pin_root` and `observe`.
    """
    with read_sources(manifest, {}, trust) as sources:
        desired = resolve(
            manifest, sources.found, kernel.machine(), lacking=lacking_hooks(manifest, sources)
        )
        if withhold:
            desired = without(desired, memory.withheld)
        desired = with_matches(desired)
    check_pin_root(manifest.pin_root, trust)
    with Held() as held:
        boot, layout = kernel.boot_id(), Layout(manifest.pin_root)
        observed = observe(desired, layout, held, memory.last_ids(boot), memory.owners(boot))
        observed = with_foreign(desired, layout, observed, everywhere=True)
    observed = with_conflicts(observed, _undecided(memory, boot))
    todo = plan(desired, observed, force=force)
    return Look(desired, observed, todo, followed(memory, desired, observed, marked(layout))[0])


def _undecided(memory: Memory, boot: str) -> dict[str, int]:
    """Conflicts that nobody has decided yet, without those whose map is gone with the service
    manager's descriptor; as far as it may be told, which takes CAP_SYS_ADMIN."""
    known = memory.conflicts if memory.boot_id == boot else {}
    return {name: map_id for name, map_id in known.items() if kernel.map_lives(map_id)}


class Keeper:
    """Keeps the maps of one manifest: reloads it, and remembers what bpffs cannot.

    It holds the pin root and a descriptor of everything kept. `close` lets go of them, and leaves
    all that is pinned and attached as it is.

    Raises:
        ManifestError: the first manifest is wrong.
        PinRootError, BusyError: it cannot be kept at this pin root, or somebody else does.
    """

    def __init__(
        self,
        manifest_file: str,
        state_directory: str,
        on_step: OnStep,
        pause: Pause = sleep,
        trust: Trust = NOBODY_ELSE,
    ) -> None:
        self.manifest_file = manifest_file
        self._trust = trust
        self.status = Status()
        self.desired: Desired | None = None
        self.notes: list[str] = []
        self._on_step = on_step
        self._pause = pause
        self._texts: list[tuple[str, bytes]] = []
        self.manifest = manifest = self._read_manifest()
        self._layout = Layout(manifest.pin_root)
        make_pin_root(manifest.pin_root, trust)
        self._lock = RootLock(manifest.pin_root, functools.partial(open_root, trust=trust))
        self._held = Held()
        self._specs: Specs = {}
        self._good: dict[str, WantedObject] = {}  # as last loaded
        try:
            self._ledger = Ledger(state_directory, self._layout, on_step)
        except KeeperError:
            self._lock.close()
            raise
        if self._ledger.note:
            self.notes.append(self._ledger.note)
        self._results: Counter[ReloadResult] = Counter()
        self._buckets = [0] * (len(DURATION_BUCKETS_SECONDS) + 1)
        self._seconds_sum = 0.0
        self._last_success: float | None = None
        self._last_result: ReloadResult | None = None
        self._reuses: Counter[str] = Counter()
        self._foreign = False  # whether somebody else was seen where we attach
        self._settled: Desired | None = None  # what is healed: as the last reload left it
        self._machine: Machine | None = None  # as of the last reload
        self._healer = Healer()
        self.stored = Stored()
        """What the service manager kept, until the first reload takes it over."""
        self.places: Places | None = None
        """Where something that concerns the keeper can change, as of the last look."""

    def reload(
        self, *, force: bool = False, keep_pinned: bool = False
    ) -> tuple[Outcome, tuple[IdChange, ...]]:
        """One reload, from the manifest to the state file. Never raises a `KeeperError`.

        ``keep_pinned`` lets go of the maps that the service manager kept beside pinned ones.
        """
        started = time.monotonic()
        kept = sum(found.id is not None for found in self.status.maps)
        try:
            outcome = self._reload(force, keep_pinned)
        except ManifestError as error:
            failures = (Failure(str(error)),)
            outcome = Outcome(ReloadResult.REJECTED, failures=failures, kept_maps=kept)
        except KeeperError as error:
            failures = (Failure(str(error)),)
            outcome = Outcome(ReloadResult.FAILED, failures=failures, kept_maps=kept)
        except OSError as error:
            text = f"cannot go on: {error.filename or 'a system call'}: {error.strerror}"
            outcome = Outcome(ReloadResult.FAILED, failures=(Failure(text),), kept_maps=kept)
        seconds = time.monotonic() - started
        outcome = replace(outcome, duration_seconds=seconds)
        self._count(outcome)
        self.status = replace(self.status, reloads=self._reload_status())
        return outcome, self._ledger.tell()

    def _reload(self, force: bool, keep_pinned: bool) -> Outcome:
        manifest = self._next_manifest()
        with read_sources(manifest, self._specs, self._trust) as sources:
            lacking = lacking_hooks(manifest, sources)
            machine = kernel.machine()
            known = self.desired if machine == self._machine else None
            self._machine = machine
            raw = resolve(manifest, sources.found, machine, self._good, lacking, known)
            desired = with_matches(raw)
            make_pin_root(manifest.pin_root, self._trust)
            self._lock.refresh()
            with writing(open_own(self._layout.root)) as lock:
                notes = self.stored.give(self._held, self._layout, desired, self._ledger.memory)
                observed = self._observe(desired, keep_pinned=keep_pinned)
                self._ledger.note_before(desired, observed)
                todo = plan(desired, observed, force=force)
                applied = self._apply(todo, observed, sources, lock)
                applied.notes += notes
        if manifest.metrics_listen != self.manifest.metrics_listen:
            applied.notes.append("metrics.listen has changed: it takes effect with a restart")
        withheld = {}
        if applied.unhealthy:
            withheld = withheld_versions(todo, applied.unhealthy)
            raw = former(self._settled, raw, withheld)
            desired = with_matches(raw)
        self.manifest, self.desired = raw.manifest, raw
        self._ledger.memory = replace(self._ledger.memory, withheld=withheld)
        self._reuses.update(todo.kept_maps)
        applied.notes += todo.notes
        left = replace(todo, restores=(), changes=(), removals=())
        try:
            whole = not (applied.failures or todo.refusals or applied.refusals)
            former_maps = self._settled.maps if self._settled and not whole else ()
            self._take_stock(desired, applied, left, former_maps)
        except KeeperError as error:  # what was done is done, and has to be told
            applied.failures.append(Failure(f"cannot look at what is now: {error}"))
        if todo.changes:
            kernel.release_memory()
        refusals = tuple(str(refusal) for refusal in (*todo.refusals, *applied.refusals))
        failed = applied.failures or refusals
        outcome = Outcome(
            ReloadResult.FAILED if failed else ReloadResult.OK,
            done=tuple(applied.done),
            failures=tuple(applied.failures),
            refusals=refusals,
            notes=tuple(applied.notes),
            kept_maps=len(todo.kept_maps),
            rolled_back=applied.rolled_back,
            swapping_seconds=applied.swapping_seconds,
        )
        if applied.unhealthy or not applied.rolled_back or self._settled is None:
            self._settled = self._in_force(raw, lacking)
        self._healer.forget()
        return outcome

    def _next_manifest(self) -> Manifest:
        """That of now, in the place of the one that is kept.

        Raises:
            ManifestError: it cannot take its place, or cannot be read; nothing was touched.
        """
        try:
            manifest = self._read_manifest()
        except ManifestError:
            raise
        except KeeperError as error:
            raise ManifestError((), str(error)) from None
        if manifest.pin_root != self.manifest.pin_root:
            why = (
                f"the manifest's pin_root is now {manifest.pin_root}; it cannot change while the"
                f" keeper runs: restart it, or go back to {self.manifest.pin_root}"
            )
            raise ManifestError((), why)
        return manifest

    def _read_manifest(self) -> Manifest:
        """The manifest of now; the same text is not parsed again."""
        texts = read_files(self.manifest_file, self._trust)
        if texts != self._texts:
            manifest = parse_manifest(texts)
            self._texts, self._parsed = texts, manifest
        return with_accounts(self._parsed)

    def _in_force(self, desired: Desired, lacking: Mapping[Hook, str]) -> Desired:
        """What a reload left: of an object that could not be loaded, what was loaded before."""
        missing = {
            name: f"the last reload did not load it: {wanted.source.sha256[:12]} is the new file"
            for name, wanted in desired.objects.items()
            if not wanted.fault
            and (name not in self._good or self._good[name].digest != wanted.digest)
        }
        if not missing:
            return desired
        sources: dict[str, ObjectSource | str] = {
            name: missing.get(name) or wanted.fault or wanted.source
            for name, wanted in desired.objects.items()
        }
        good = {name: found for name, found in self._good.items() if name in desired.objects}
        try:
            found = {**sources, **desired.faults}
            return resolve(desired.manifest, found, kernel.machine(), good, lacking)
        except ManifestError:  # it does not fit the former files
            return self._settled or desired

    def heal(self, now: float) -> Healed:
        """Puts right what drifted from what the last reload left, as far as it is time for it.

        The files of now are not looked at, but where an object has to be loaded again. Without
        ``heal`` in the manifest it is a look.

        Raises:
            KeeperError: the pin root cannot be read, or not be made again.
        """
        if self._settled is None or not self.manifest.heal:
            return Healed(changes=self.look())
        make_pin_root(self.manifest.pin_root, self._trust)
        self._lock.refresh()
        wanted = with_matches(self._settled)
        with Sources() as sources, writing(open_own(self._layout.root)) as lock:
            observed = self._observe(wanted)
            self._ledger.note_before(wanted, observed)
            todo = plan(wanted, observed)
            changed = read_for_healing(todo, wanted, sources, self._specs, self._trust)
            healing = self._healer.choose(todo, observed, changed, now)
            parts = [self._apply(part, observed, sources, lock) for part in healing.plans]
        applied = together(parts) if parts else Applied(observed=observed)
        healed = self._healer.record(healing, applied, now)
        if self._settled is not self.desired and self.desired:
            applied.observed = None
            wanted = with_matches(self.desired)
        elif applied.observed and healing.plans:
            todo = plan(wanted, applied.observed)
        self._take_stock(wanted, applied, todo, self._settled.maps)
        return replace(healed, changes=self._ledger.tell())

    def _apply(self, todo: Plan, observed: Observed, sources: Sources, lock: int | None) -> Applied:
        return apply(
            todo,
            observed,
            self._layout,
            held=self._held,
            open_object=sources.open,
            on_step=self._on_step,
            patience=Patience(self._pause, functools.partial(letting_look, lock)),
        )

    def look(self) -> tuple[IdChange, ...]:
        """Observes what is now, for status, drift and ID changes; changes nothing.

        Raises:
            PinRootError, KernelError: the pin root cannot be read.
        """
        if self.desired is None:
            return ()
        check_pin_root(self.manifest.pin_root, self._trust)
        desired = with_matches(self.desired)
        observed = self._observe(desired)
        todo = plan(desired, observed)
        settled = self._settled.maps if self._settled else ()
        self._take_stock(desired, Applied(observed=observed), todo, settled)
        return self._ledger.tell()

    def _observe(self, desired: Desired, *, keep_pinned: bool = False) -> Observed:
        memory, boot = self._ledger.memory, kernel.boot_id()
        last_ids, owners = memory.last_ids(boot), memory.owners(boot)
        observed = observe(desired, self._layout, self._held, last_ids, owners)
        stored = self._held.undecided_ids()
        if not keep_pinned:  # `apply` has no descriptors, and knows of it all the same
            both = {**_undecided(memory, boot), **stored}
            observed = with_conflicts(observed, both, self._ledger.pinned_here)
        if stored:
            self._held.undecided = undecided(observed, stored, unread=bool(desired.faults))
        # What is known of others is looked at again; else only those who attach have to know.
        observed = with_foreign(desired, self._layout, observed, everywhere=self._foreign)
        self._foreign = bool(observed.foreign)
        return observed

    def _take_stock(
        self, desired: Desired, applied: Applied, todo: Plan, settled: Collection[str]
    ) -> None:
        """Counts ID changes, makes a new status, and takes hold of what is now.

        In this order: what the status names is not let go of before there is another one.

        ``todo`` is what is still to be done; ``settled`` are maps that stay held, although a
        reload that failed does not want them any more.
        """
        observed = applied.observed
        if observed is None:
            observed = self._observe(desired)
            todo = plan(desired, observed)
        for name, wanted in desired.objects.items():
            if wanted.digest in observed.programs.get(escape(name), ()) and not wanted.fault:
                self._good[name] = wanted
        ledger = self._ledger
        ledger.follow(desired, observed, applied.renamed_maps)
        ledger.memory = adopted_links(ledger.memory, applied.adopted, observed)
        if note := ledger.write():
            applied.notes.append(note)
        self.places = places(self.desired or desired, observed, self._layout)
        now = status(
            desired,
            observed,
            ledger.memory,
            reuses=self._reuses,
            drifting=differences(todo),
            reloads=self._reload_status(),
            heals=self._healer.status,
        )
        self.status = with_inner_maps(now, self._layout)
        differing = {refusal.name for refusal in todo.refusals if refusal.kind == "map"}
        self._held.follow(observed, self._layout, settled, differing)

    def _count(self, outcome: Outcome) -> None:
        self._results[outcome.result] += 1
        self._last_result = outcome.result
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
            dict(self._results),
            self._seconds_sum,
            tuple(buckets),
            self._last_success,
            self._last_result,
        )

    def kept(self) -> Kept:
        """What the service manager is to keep for the next start; the descriptors stay the
        keeper's."""
        return kept(self._held, self._layout, self._ledger.memory)

    def close(self) -> None:
        """Lets go of the descriptors and of the pin root; what is pinned and attached stays."""
        self.stored.close()
        self._held.close()
        self._ledger.close()
        self._lock.close()
