"""Values become text for people: tables and one-line facts. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bpfkeeperd.maptypes import BY_NUMBER, Count, type_name
from bpfkeeperd.state import AttachmentStatus, Difference, InnerStatus, MapStatus, Status

INNER_ROWS_MAX = 16
"""Inner maps shown of each map of maps."""
DIFFERENCE_ROWS_MAX = 50


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be, numbers to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numeric = [
        all(
            line[column].strip("~% B").replace(".", "").isdigit() or line[column] in ("-", "")
            for line in lines[1:]
        )
        for column in range(len(head))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def maps_table(maps: Iterable[MapStatus], counts: Mapping[int, int]) -> str:
    rows: list[Sequence[str]] = []
    for status in maps:
        rows.append(
            (
                status.name,
                "-" if status.id is None else str(status.id),
                type_name(status.type),
                *_fullness(status.type, status.max_entries, counts.get(status.id or 0)),
                str(status.policy),
                str(sum(status.changes.values())),
                status.problem,
            )
        )
        rows.extend(_inner_rows(status.inner, counts))
    head = ("MAP", "ID", "TYPE", "USED", "OF", "FILL", "POLICY", "ID CHANGES", "")
    return table(head, rows)


def _fullness(map_type: int, max_entries: int, used: int | None) -> tuple[str, str, str]:
    """Used, of how many, in percent; a storage has no end, and no part of it is used."""
    known = BY_NUMBER.get(map_type)
    unit = " B" if known and known.count is Count.BYTES else ""
    about = "~" if known and known.count is Count.ESTIMATE else ""
    fill = "-"
    if used is not None and max_entries:
        fill = f"{100 * min(used / max_entries, 1):.1f}%"
    return (
        "-" if used is None else f"{about}{used}{unit}",
        f"{max_entries}{unit}" if max_entries else "-",
        fill,
    )


def _inner_rows(
    inner: Sequence[InnerStatus], counts: Mapping[int, int]
) -> Iterator[tuple[str, ...]]:
    for found in inner[:INNER_ROWS_MAX]:
        fullness = _fullness(found.type, found.max_entries, counts.get(found.id))
        yield f"  [{found.key}]", str(found.id), type_name(found.type), *fullness, "", "", ""
    more = len(inner) - INNER_ROWS_MAX
    if more > 0:
        yield f"  ... and {more} more", *[""] * 8


def attachments_table(attachments: Iterable[AttachmentStatus]) -> str:
    return table(
        ("ATTACHMENT", "HOOK", "TARGET", "STATE", ""),
        (
            (
                f"{status.object}/{status.program}",
                status.hook,
                status.target,
                "up" if status.up else "DOWN",
                status.problem,
            )
            for status in attachments
        ),
    )


def differences_table(differences: Sequence[Difference]) -> str:
    rows = [(found.kind, found.text) for found in differences[:DIFFERENCE_ROWS_MAX]]
    more = len(differences) - len(rows)
    if more > 0:
        rows.append((f"... and {more} more", ""))
    return table(("DRIFT", "WHAT A RELOAD DOES"), rows)


def status_text(status: Status, counts: Mapping[int, int], problems: Sequence[str]) -> str:
    parts = []
    if status.maps:
        parts.append(maps_table(status.maps, counts))
    if status.attachments:
        parts.append(attachments_table(status.attachments))
    drifting = [f"{kind} {count}" for kind, count in status.drift.items() if count]
    parts.append(f"drift from the manifest: {', '.join(drifting) or 'none'}")
    others = [found for found in status.differences if found.text not in problems]
    if others:
        parts.append(differences_table(others))
    if problems:
        parts.append("\n".join(problems))
    return "\n\n".join(parts)
