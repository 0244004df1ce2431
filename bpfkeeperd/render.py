"""Values become text for people: tables and one-line facts. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from bpfkeeperd.maptypes import BY_NUMBER, Count, type_name
from bpfkeeperd.state import AttachmentStatus, MapStatus, Status


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be, numbers to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numeric = [
        all(
            line[column].replace(".", "").rstrip("%").isdigit() or line[column] == "-"
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
    rows = []
    for status in maps:
        entries = counts.get(status.id) if status.id is not None else None
        known = BY_NUMBER.get(status.type)
        unit = " B" if known and known.count is Count.BYTES else ""
        fill = "-"
        if entries is not None and status.max_entries:
            fill = f"{100 * min(entries / status.max_entries, 1):.1f}%"
        rows.append(
            (
                status.name,
                "-" if status.id is None else str(status.id),
                type_name(status.type),
                "-" if entries is None else f"{entries}{unit}",
                f"{status.max_entries}{unit}",
                fill,
                str(status.policy),
                str(sum(status.changes.values())),
                status.problem,
            )
        )
    head = ("MAP", "ID", "TYPE", "USED", "OF", "FILL", "POLICY", "ID CHANGES", "")
    return table(head, rows)


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


def status_text(status: Status, counts: Mapping[int, int], problems: Sequence[str]) -> str:
    parts = []
    if status.maps:
        parts.append(maps_table(status.maps, counts))
    if status.attachments:
        parts.append(attachments_table(status.attachments))
    drifting = [f"{kind} {count}" for kind, count in status.drift.items() if count]
    parts.append(f"drift from the manifest: {', '.join(drifting) or 'none'}")
    if problems:
        parts.append("\n".join(problems))
    return "\n\n".join(parts)
