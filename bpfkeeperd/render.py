"""The status becomes text for people. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from bpfkeeperd.celltext import visible, width_of, wrapped
from bpfkeeperd.columns import Cell, Columns, Form, Screen, Style, lay_out, safe
from bpfkeeperd.fullness import Counts
from bpfkeeperd.mapstable import lay_out_maps
from bpfkeeperd.state import AttachmentStatus, Difference, MapStatus, Status, counted

DIFFERENCE_ROWS_MAX = 50

_DIGEST_SHOWN = 12
_CONCESSIONS = (
    *("TAG", "DIGEST", "DIGEST", "TARGET", "ATTACHMENT", "TARGET", "HOOK", "ATTACHMENT"),
    *("HOOK", "TARGET", "ATTACHMENT", "STATE"),
)


def maps_table(maps: Iterable[MapStatus], counts: Counts, screen: Screen, *, now: float) -> str:
    """``now`` is Unix time."""
    return "\n".join(lay_out_maps(maps, counts, screen, now=now).lines())


def attachments_table(attachments: Sequence[AttachmentStatus], screen: Screen) -> str:
    columns = _attachment_columns(attachments)
    notes = [
        (Cell(found.problem, Style.WARNING),) if found.problem else () for found in attachments
    ]
    return "\n".join(lay_out(safe(columns, screen), _CONCESSIONS, notes, screen).lines())


def _attachment_columns(attachments: Sequence[AttachmentStatus]) -> Columns:
    states = [_state_cell(found) for found in attachments]
    names = [Cell(f"{found.object}/{found.program}") for found in attachments]
    hooks = [Cell(found.hook) for found in attachments]
    targets = [Cell(found.target) for found in attachments]
    digests = [Cell(found.digest) for found in attachments]
    known = any(found.digest for found in attachments)
    return {
        "STATE": [Form("STATE", states)],
        "ATTACHMENT": [Form("ATTACHMENT", names, least=least) for least in (None, 24, 12, 1)],
        "HOOK": [Form("HOOK", hooks, least=least) for least in (None, 12)],
        "TARGET": [Form("TARGET", targets, least=least) for least in (None, 30, 12)],
        "DIGEST": [
            Form("DIGEST", digests),
            Form("DIGEST", [Cell(cell.text[:_DIGEST_SHOWN]) for cell in digests]),
        ]
        if known
        else [],
        "TAG": [Form("TAG", [Cell(found.tag) for found in attachments])] if known else [],
    }


def _state_cell(status: AttachmentStatus) -> Cell:
    if not status.up:
        return Cell("DOWN", Style.DOWN)
    return Cell("up, adopted" if status.adopted else "up", Style.GOOD)


def status_text(
    status: Status, counts: Counts, refused: Sequence[str], kept: str, screen: Screen, *, now: float
) -> str:
    """All of it, in sections; ``kept`` says who keeps the pin root, ``now`` is Unix time."""
    parts = [_headline(status, refused, kept, screen)]
    if status.attachments:
        parts.append(attachments_table(status.attachments, screen))
    if status.maps:
        parts.append(maps_table(status.maps, counts, screen, now=now))
    if counts.problem:
        parts.append("\n".join(wrapped(counts.problem, screen.width)))
    if drift := list(_drift_lines(status, refused, screen)):
        parts.append("\n".join(drift))
    if refused:
        parts.append("\n".join(_refused_lines(refused, screen)))
    return "\n\n".join(parts)


def _headline(status: Status, refused: Sequence[str], kept: str, screen: Screen) -> str:
    wrong = list(_wrong(status, refused))
    drifting = sum(status.drift.values())
    if wrong:
        style, said = Style.BAD, f"{', '.join(wrong)}"
    elif drifting:
        style, said = Style.WARNING, counted(drifting, "difference") + " from the manifest"
    else:
        style, said = Style.GOOD, "all fine"
    parts = [counted(len(status.maps), "map"), counted(len(status.attachments), "attachment")]
    lines = wrapped(visible(f"{kept}: {', '.join(parts)}", unicode=screen.unicode), screen.width)
    return "\n".join([*lines, *(screen.paint(line, style) for line in wrapped(said, screen.width))])


def _wrong(status: Status, refused: Sequence[str]) -> Iterator[str]:
    """What has ``status`` fail, counted."""
    down = sum(not found.up for found in status.attachments)
    unpinned = sum(found.id is None for found in status.maps)
    if down:
        yield f"{counted(down, 'attachment')} DOWN"
    if unpinned:
        yield f"{counted(unpinned, 'map')} not pinned"
    if refused:
        yield f"{len(refused)} refused"


def _drift_lines(status: Status, refused: Sequence[str], screen: Screen) -> Iterator[str]:
    drifting = [f"{kind} {count}" for kind, count in status.drift.items() if count]
    if not drifting:
        return
    head = f"drift from the manifest: {', '.join(drifting)}"
    yield from (screen.paint(line, Style.HEAD) for line in wrapped(head, screen.width))
    others = [found for found in status.differences if found.text not in refused]
    shown = others[:DIFFERENCE_ROWS_MAX]
    yield from _difference_lines(shown, screen)
    if len(others) > len(shown):
        yield f"  and {len(others) - len(shown)} more"


def _difference_lines(differences: Sequence[Difference], screen: Screen) -> Iterator[str]:
    """Each with its kind in front, and beside it what a reload does; below it where that is
    narrow."""
    widest = max((width_of(found.kind) for found in differences), default=0)
    beside = screen.width is None or screen.width >= 2 * widest + 40
    for found in differences:
        text = visible(found.text, unicode=screen.unicode)
        if beside:
            indent = " " * (widest + 4)
            first = f"  {found.kind.ljust(widest)}  "
            yield from wrapped(text, screen.width, indent, first)
        else:
            yield f"  {found.kind}"
            yield from wrapped(text, screen.width, "    ")


def _refused_lines(refused: Sequence[str], screen: Screen) -> Iterator[str]:
    yield screen.paint("not done, as it is in the manifest:", Style.HEAD)
    for text in refused:
        lines = wrapped(visible(text, unicode=screen.unicode), screen.width, "    ", "  ! ")
        yield from (screen.paint(line, Style.WARNING) for line in lines)
