"""What the daemon writes into its log: one line for each action and each change of state."""

from collections.abc import Sequence

from bpfkeeperd.churn import IdChange
from bpfkeeperd.healer import Healed
from bpfkeeperd.service import MessageId, fields, log
from bpfkeeperd.state import Difference, MapStatus, Outcome, ReloadResult, Status

DIFFERENCES_MAX = 20
"""Logged one by one of what is found at once."""


def log_outcome(outcome: Outcome, status: Status) -> None:
    for line in outcome.done:
        log.info("%s", line)
    for note in outcome.notes:
        log.warning("%s", note)
    for failure in outcome.failures:
        log.error("%s", failure.message)
        if failure.detail:
            log.debug("%s", failure.detail)
    conflicts = {_conflict_text(found): found for found in status.maps if found.stored_id}
    for refusal in outcome.refusals:
        if refusal not in conflicts:
            log.error("%s", refusal)
    for text, found in conflicts.items():
        values = fields(
            MessageId.MAP_CONFLICT, map=found.name, pinned_id=found.id, stored_id=found.stored_id
        )
        log.error("%s", text, extra=values)
    values = fields(
        {
            ReloadResult.OK: MessageId.RELOAD_OK,
            ReloadResult.FAILED: MessageId.RELOAD_FAILED,
            ReloadResult.REJECTED: MessageId.RELOAD_REJECTED,
        }[outcome.result],
        result=outcome.result,
        kept_maps=outcome.kept_maps,
    )
    level = log.info if outcome.result is ReloadResult.OK else log.error
    level("%s", outcome.summary, extra=values)


def _conflict_text(found: MapStatus) -> str:
    return f"map {found.name}: {found.problem}"


def log_changes(changes: tuple[IdChange, ...]) -> None:
    for change in changes:
        values = fields(
            MessageId.MAP_ID_CHANGED,
            map=change.name,
            old_id=change.old,
            new_id=change.new,
            reason=change.reason,
        )
        log.warning("%s", change, extra=values)


def log_healed(healed: Healed) -> None:
    """What was put right without a reload, and what was not."""
    for action in healed.actions:
        if action.done:
            values = fields(MessageId.HEALED, kind=action.kind, subject=action.subject)
            log.warning("healed: %s", action.text, extra=values)
    failed = [action for action in healed.actions if not action.done]
    for action in failed:
        values = fields(MessageId.HEAL_FAILED, kind=action.kind, subject=action.subject)
        log.error("cannot heal: %s", action.text, extra=values)
    for note in healed.notes:
        if failed:
            log.error("%s", note)
        else:
            log.warning("%s", note)
    for subject in healed.given_up:
        log.error(
            "%s drifts again and again, or cannot be put right: it is left alone until the next"
            " reload, or for an hour",
            subject,
            extra=fields(MessageId.HEAL_GIVEN_UP, subject=subject),
        )


class DriftLog:
    """Says what changed since it was last said: drift that is still there, and why."""

    __slots__ = ("_differences", "_drift", "_impossible")

    def __init__(self) -> None:
        self._drift: dict[str, int] = {}
        self._differences: frozenset[Difference] = frozenset()
        self._impossible: frozenset[str] = frozenset()

    def reloaded(self, status: Status) -> None:
        """Takes note of what a reload left, which its outcome tells."""
        self._drift = dict(status.drift)
        self._differences = frozenset(status.differences)
        self._impossible = frozenset()

    def looked(self, status: Status, impossible: Sequence[str]) -> None:
        found = frozenset(status.differences)
        new = [found for found in status.differences if found not in self._differences]
        for difference in new[:DIFFERENCES_MAX]:
            values = fields(MessageId.DRIFT, kind=difference.kind)
            log.warning("drift: %s", difference.text, extra=values)
        for text in impossible:
            if text not in self._impossible:
                log.error("%s", text, extra=fields(MessageId.DRIFT))
        if status.drift != self._drift:
            kinds = [f"{kind} {count}" for kind, count in status.drift.items() if count]
            text = ", ".join(kinds) or "none any more"
            log.warning("drift from the manifest: %s", text, extra=fields(MessageId.DRIFT))
        self._drift, self._differences = dict(status.drift), found
        self._impossible = frozenset(impossible)
