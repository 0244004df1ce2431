"""What the service manager shows of the daemon: one line, the truth of now. Pure."""

from bpfkeeperd.state import Outcome, ReloadResult, Status, counted

PROBLEM_MAX = 200
"""Characters of what went wrong: what is kept is to be read, too."""


def status_line(outcome: Outcome, status: Status, applied_at: str) -> str:
    """How the last reload ended, and, unless all went well, what is kept.

    ``applied_at`` says of when the manifest is that is in force; empty: there is none yet.
    """
    if outcome.result is ReloadResult.OK:
        return outcome.summary
    said = [failure.message for failure in outcome.failures] + list(outcome.refusals)
    problem = said[0].partition("\n")[0] if said else "no reason is known"
    if len(problem) > PROBLEM_MAX:
        problem = f"{problem[: PROBLEM_MAX - 3]}..."
    rejected = outcome.result is ReloadResult.REJECTED
    how = "reload rejected" if rejected else outcome.summary
    maps = counted(sum(found.id is not None for found in status.maps), "map")
    attachments = counted(sum(found.up for found in status.attachments), "attachment")
    of = f" of the manifest of {applied_at}" if applied_at else ""
    still = "still keeping" if rejected or outcome.rolled_back else "keeping"
    return f"{how}: {problem}; {still} {maps}, {attachments}{of}"
