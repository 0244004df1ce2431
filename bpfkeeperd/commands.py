"""What each command does, and its exit code. Text goes to standard output, errors are raised."""

import json
import os
import signal
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from bpfkeeperd.errors import BusyError, KeeperError, ManifestError

if TYPE_CHECKING:  # what a command needs is imported by that command, and takes its time there
    from collections.abc import Iterable

    from bpfkeeperd.actions import Plan
    from bpfkeeperd.churn import Memory
    from bpfkeeperd.entries import Manifest
    from bpfkeeperd.fullness import Counts
    from bpfkeeperd.state import MapStatus, Outcome, Status
    from bpfkeeperd.verify import Judged

OK, FAILED, BAD_MANIFEST, CHANGES, CONFIG = 0, 1, 2, 3, 78
"""Exit codes; CONFIG (EX_CONFIG) is that of `run` for a manifest that is wrong, which tells the
service manager not to try again."""

_SLOW_FIGURES_SECONDS = 5.0
"""How long `metrics` waits for figures that take their time."""


def run(options: Namespace) -> int:
    from bpfkeeperd import service
    from bpfkeeperd.daemon import Daemon

    service.set_up_log(10 if options.verbose else 20)
    try:
        places = state_directory(options), run_directory(options)
        served = Daemon(options.config, *places, options.textfile, options.trust).run()
    except ManifestError as error:
        values = service.fields(service.MessageId.RELOAD_REJECTED, result="rejected")
        service.log.error("%s", error, extra=values)
        return CONFIG
    except KeeperError as error:
        service.log.error("%s", error)
        return FAILED
    return OK if served else CONFIG


def check(options: Namespace) -> int:
    from bpfkeeperd.check import check_manifest

    report = check_manifest(options.config, options.trust)
    print(json.dumps(asdict(report), indent=2) if options.json else report)
    return FAILED if report.faults or report.metrics_fault else OK


def plan(options: Namespace) -> int:
    from bpfkeeperd.keeper import look
    from bpfkeeperd.lock import reading
    from bpfkeeperd.manifest import read_manifest
    from bpfkeeperd.pinroot import open_own

    manifest = read_manifest(options.config, options.trust)
    judged: tuple[Judged, ...] = ()
    with reading(open_own(manifest.pin_root)):
        seen = look(
            manifest, _memory(options, manifest.pin_root), options.trust, force=options.force
        )
        if options.verify:
            from bpfkeeperd.verify import verify

            judged = verify(manifest, seen, options.trust)
    if options.json:
        print(json.dumps(_plan_rows(seen.plan, judged if options.verify else None), indent=2))
    else:
        _print_plan(seen.plan, judged, verbose=options.verbose)
    if any(found.fault for found in judged):
        return FAILED
    if options.exit_code and _shown_actions(seen.plan):
        return CHANGES
    return FAILED if seen.plan.refusals else OK


def _shown_actions(plan: "Plan") -> list[str]:
    from bpfkeeperd.actions import REPLACED, RemovePrograms

    return [
        str(action)
        for action in plan.actions
        if not (isinstance(action, RemovePrograms) and action.reason == REPLACED)
    ]


def _plan_rows(plan: "Plan", judged: "tuple[Judged, ...] | None") -> dict[str, object]:
    """A plan for JSON."""
    rows: dict[str, object] = {
        "actions": _shown_actions(plan),
        "trials": [str(trial) for trial in plan.trials],
        "refusals": [str(refusal) for refusal in plan.refusals],
        "kept": list(plan.kept_maps),
        "notes": list(plan.notes),
    }
    if judged is not None:
        rows["verified"] = [asdict(found) for found in judged]
    return rows


def _print_plan(plan: "Plan", judged: "tuple[Judged, ...]", *, verbose: bool) -> None:
    from bpfkeeperd.state import counted

    actions = _shown_actions(plan)
    for line in (*actions, *plan.trials):
        print(line)
    for refusal in plan.refusals:
        print(f"NOT DONE: {refusal}")
    for note in plan.notes:
        print(f"note: {note}")
    if plan.kept_maps:
        print(f"keep {counted(len(plan.kept_maps), 'map')}: {', '.join(plan.kept_maps)}")
    if not actions and not plan.refusals:
        print("nothing to do")
    for found in judged:
        print(found)
        if verbose and found.log:
            print(found.log)


def apply(options: Namespace) -> int:
    from bpfkeeperd.keeper import Keeper
    from bpfkeeperd.steps import failpoint

    # As Ctrl-C: what is on trial is rolled back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keeper = Keeper(options.config, state_directory(options), failpoint(), trust=options.trust)
    try:
        outcome, changes = keeper.reload(force=options.force)
    finally:
        keeper.close()
    return _print_outcome(options, outcome, [str(change) for change in changes])


def reload(options: Namespace) -> int:
    from bpfkeeperd.control import control_path, request_reload
    from bpfkeeperd.state import ReloadResult

    path = control_path(run_directory(options), options.config)
    outcome = request_reload(
        path,
        force=options.force,
        keep_pinned=options.keep_pinned,
        wait=options.wait,
        timeout_seconds=options.timeout,
    )
    if outcome is None:
        if not options.quiet:
            print("reload asked for")
        return OK
    if options.quiet:
        return OK if outcome.result is ReloadResult.OK else FAILED
    return _print_outcome(options, outcome, [])


def _print_outcome(options: Namespace, outcome: "Outcome", changes: list[str]) -> int:
    from bpfkeeperd.state import ReloadResult

    if options.json:
        print(json.dumps({**asdict(outcome), "id_changes": changes}, indent=2))
    else:
        for line in (*outcome.done, *outcome.notes, *changes):
            print(line)
        for line in outcome.refusals:
            print(f"NOT DONE: {line}")
        for failure in outcome.failures:
            print(f"FAILED: {failure.message}")
            if options.verbose and failure.detail:
                print(failure.detail)
        print(outcome.summary)
    match outcome.result:
        case ReloadResult.OK:
            return OK
        case ReloadResult.REJECTED if options.command == "apply":
            return BAD_MANIFEST
        case _:
            return FAILED


def status(options: Namespace) -> int:
    import time

    from bpfkeeperd.mapjson import map_rows
    from bpfkeeperd.render import status_text
    from bpfkeeperd.terminal import screen_of

    snapshot, refused = _look(options)
    counts = _counts(snapshot.maps)
    if options.json:
        problems = [*refused, counts.problem] if counts.problem else refused
        found = {**asdict(snapshot), "maps": map_rows(snapshot.maps, counts), "problems": problems}
        found["daemon_lacks"] = _daemon_lacks(options)
        print(json.dumps(found, indent=2))
    else:
        kept, screen = _who_keeps(options), screen_of(sys.stdout)
        print(status_text(snapshot, counts, refused, kept, screen, now=time.time()))
    up = all(attachment.up for attachment in snapshot.attachments)
    pinned = all(entry.id is not None for entry in snapshot.maps)
    return OK if up and pinned and not refused else FAILED


def maps(options: Namespace) -> int:
    import time

    from bpfkeeperd.mapjson import map_rows
    from bpfkeeperd.render import maps_table
    from bpfkeeperd.terminal import screen_of

    if options.watch is not None:
        return _watch_maps(options)
    snapshot, _ = _look(options)
    counts = _counts(snapshot.maps)
    if options.json:
        print(json.dumps(map_rows(snapshot.maps, counts), indent=2))
        return OK
    print(maps_table(snapshot.maps, counts, screen_of(sys.stdout), now=time.time()))
    if counts.problem:
        print(counts.problem)
    return OK


def _watch_maps(options: Namespace) -> int:
    from bpfkeeperd.mapcounts import MapCounts
    from bpfkeeperd.mapwatch import watch_maps

    with MapCounts() as counting:

        def look(manifest: "Manifest") -> "Status":
            found, _ = _look_at(manifest, options)
            counting.follow(found.maps)
            return found

        watch_maps(options.config, look, counting.read, options.watch, options.trust)
    return OK


def metrics(options: Namespace) -> int:
    from bpfkeeperd.instruments import Instruments
    from bpfkeeperd.manifest import read_manifest
    from bpfkeeperd.textfile import check_textfile, write_textfile

    if options.textfile:
        check_textfile(options.textfile)
    snapshot, _ = _look(options)
    with Instruments(lambda: snapshot) as instruments:
        instruments.follow(read_manifest(options.config, options.trust))
        instruments.open_allocator()
        instruments.wait(_SLOW_FIGURES_SECONDS)
        text, _ = instruments.metrics.render(process=False)
    if options.textfile:
        write_textfile(options.textfile, text)
    else:
        print(text.decode(), end="")
    return OK


def dump(options: Namespace) -> int:
    from bpfkeeperd import kernel
    from bpfkeeperd.dump import dump, open_map
    from bpfkeeperd.format import Style

    style = Style.JSON if options.json else Style.TABLE
    if sys.stdout is None:
        raise KeeperError(f"cannot dump map {options.map}: standard output is closed")
    # C waits for the output, where no handler of Python would run; there is nothing to undo.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with kernel.holding(open_map(options.map, options.config, options.trust)) as fd:
        note = dump(fd, options.map, sys.stdout.fileno(), style, options.limit)
    if note:
        print(f"map {options.map}: {note}", file=sys.stderr)
    return OK


def wait(options: Namespace) -> int:
    from bpfkeeperd.follow import next_id, pin_path

    path = pin_path(options.map, options.config, options.trust)
    if not os.path.lexists(path):
        print(f"bpfkeeperd: waiting: no map is pinned as {path} yet", file=sys.stderr)
    found = next_id(path, known=options.id, timeout_seconds=options.timeout)
    if found is None:
        text = f"map {options.map} has no other ID after {options.timeout:g} s"
        print(f"bpfkeeperd: {text}", file=sys.stderr)
        return FAILED
    print(found)
    return OK


def unload(options: Namespace) -> int:
    from contextlib import closing
    from functools import partial

    from bpfkeeperd.layout import Layout
    from bpfkeeperd.ledger import Ledger
    from bpfkeeperd.lock import RootLock
    from bpfkeeperd.manifest import read_manifest
    from bpfkeeperd.pinroot import check_pin_root, open_root
    from bpfkeeperd.steps import no_failpoint
    from bpfkeeperd.unload import pinned_maps
    from bpfkeeperd.unload import unload as take_down

    root = read_manifest(options.config, options.trust).pin_root
    if not check_pin_root(root, options.trust):
        print("nothing is loaded")
        return OK
    try:
        lock = RootLock(root, partial(open_root, trust=options.trust))
    except BusyError:
        raise BusyError("a daemon keeps this pin root: stop it first, then unload") from None
    with lock, closing(Ledger(state_directory(options), Layout(root), no_failpoint)) as ledger:
        ledger.note_pinned()
        lines, ledger.memory = take_down(Layout(root), ledger.memory, with_maps=options.maps)
        notes = [note for note in (ledger.note, ledger.write()) if note]
    for line in [*lines, *map(str, ledger.tell()), *notes]:
        print(line)
    if not lines:
        print("nothing was loaded")
    left = pinned_maps(Layout(root))
    if left:
        why = "made by somebody else" if options.maps else "--maps unpins those made here"
        print(f"maps that stay pinned, with their contents: {', '.join(left)} ({why})")
    return OK


def doctor(options: Namespace) -> int:
    from bpfkeeperd.doctortable import doctor_text
    from bpfkeeperd.examine import examine
    from bpfkeeperd.judge import is_fit, rows
    from bpfkeeperd.terminal import screen_of

    found = examine(options.config, state_directory(options), run_directory(options), options.trust)
    judged = rows(found)
    if options.json:
        checks = [asdict(row) for row in judged]
        print(json.dumps({"fit": is_fit(judged), "checks": checks}, indent=2))
    else:
        print(doctor_text(judged, screen_of(sys.stdout)))
    return OK if is_fit(judged) else FAILED


def schema(options: Namespace) -> int:
    from bpfkeeperd.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return OK


def explain_map_type(options: Namespace) -> int:
    from bpfkeeperd.explain import map_type_text, map_types_text

    print(map_type_text(options.name) if options.name else map_types_text())
    return OK


def explain_errno(options: Namespace) -> int:
    from bpfkeeperd.explainerrno import errno_text_at

    print(errno_text_at(options.errno, options.place))
    return OK


def _look(options: Namespace) -> "tuple[Status, list[str]]":
    """The status of now, and what the manifest wants and cannot be had."""
    from bpfkeeperd.lock import reading
    from bpfkeeperd.manifest import read_manifest
    from bpfkeeperd.pinroot import open_own

    manifest = read_manifest(options.config, options.trust)
    with reading(open_own(manifest.pin_root)):
        return _look_at(manifest, options)


def _look_at(manifest: "Manifest", options: Namespace) -> "tuple[Status, list[str]]":
    from bpfkeeperd.drift import differences
    from bpfkeeperd.inner import with_inner_maps
    from bpfkeeperd.keeper import look
    from bpfkeeperd.layout import Layout
    from bpfkeeperd.othermaps import with_other_pins
    from bpfkeeperd.snapshot import status as snapshot
    from bpfkeeperd.state import HealStatus, ReloadStatus

    memory = _memory(options, manifest.pin_root)
    seen = look(manifest, memory, options.trust, withhold=True)
    now = snapshot(
        seen.desired,
        seen.observed,
        seen.memory,
        reuses={},
        drifting=differences(seen.plan),
        reloads=ReloadStatus(),
        heals=HealStatus(),
    )
    layout = Layout(manifest.pin_root)
    now = with_other_pins(with_inner_maps(now, layout), layout.own)
    return now, [str(refusal) for refusal in seen.plan.refusals]


def _who_keeps(options: Namespace) -> str:
    from bpfkeeperd.lock import is_held
    from bpfkeeperd.manifest import read_manifest

    root = read_manifest(options.config, options.trust).pin_root
    lacking = _daemon_lacks(options)
    without = f" without {', '.join(lacking)} (see bpfkeeperd doctor)" if lacking else ""
    return f"a daemon keeps {root}{without}" if is_held(root) else f"no daemon keeps {root}"


def _daemon_lacks(options: Namespace) -> list[str]:
    """The capabilities that the daemon would have a use for, and does not have."""
    from bpfkeeperd.capabilities import lacking_daily
    from bpfkeeperd.control import control_path, daemon_process
    from bpfkeeperd.kernel import effective_capabilities

    pid = daemon_process(control_path(run_directory(options), options.config))
    held = effective_capabilities(pid) if pid else None
    return [one.name for one in lacking_daily(held)] if held is not None else []


def _memory(options: Namespace, pin_root: str) -> "Memory":
    from bpfkeeperd.statefile import read_state, state_path

    return read_state(state_path(state_directory(options), pin_root))[0]


def _counts(maps: "Iterable[MapStatus]") -> "Counts":
    from bpfkeeperd.fullness import Counts
    from bpfkeeperd.mapcounts import WAIT_SECONDS, MapCounts

    with MapCounts() as counting:
        counting.follow(maps, wait_seconds=WAIT_SECONDS)
        try:
            return counting.read()
        except KeeperError as error:
            return Counts(problem=str(error))


def state_directory(options: Namespace) -> str:
    return str(options.state_dir or os.environ.get("STATE_DIRECTORY") or "/var/lib/bpfkeeperd")


def run_directory(options: Namespace) -> str:
    return str(options.run_dir or os.environ.get("RUNTIME_DIRECTORY") or "/run/bpfkeeperd")
