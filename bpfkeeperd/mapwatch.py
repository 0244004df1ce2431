"""The maps on a terminal, again and again: ``maps --watch``."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from bpfkeeperd.accounts import with_accounts
from bpfkeeperd.amounts import age
from bpfkeeperd.celltext import shortened, visible, wrapped
from bpfkeeperd.columns import Screen, Style
from bpfkeeperd.entries import Manifest
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.fullness import Counts
from bpfkeeperd.layout import Layout
from bpfkeeperd.lock import try_reading
from bpfkeeperd.manifest import parse_manifest, read_files
from bpfkeeperd.mapstable import Motion, lay_out_maps
from bpfkeeperd.pinroot import open_own
from bpfkeeperd.state import MapStatus, Status, counted
from bpfkeeperd.terminal import full_screen, screen_of, size_of
from bpfkeeperd.trust import NOBODY_ELSE, Trust

LOOK_SECONDS = 5.0
"""How often everything is looked at; in between the counts are renewed, and the pins compared."""
CHANGED_SECONDS = 10.0
"""How long a new ID stands out."""

Look = Callable[[Manifest], Status]
"""Looks at everything; the pin root is locked for readers."""
Count = Callable[[], Counts]


class MapWatch:
    """What a watch shows, renewed turn by turn. It holds no descriptor."""

    def __init__(self, config: str, look: Look, count: Count, trust: Trust = NOBODY_ELSE) -> None:
        self._config = config
        self._trust = trust
        self._look = look
        self._count = count
        self._texts: list[tuple[str, bytes]] = []
        self._manifest: Manifest | None = None
        self._maps: tuple[MapStatus, ...] = ()
        self._looked_at = float("-inf")
        self._pins: Mapping[str, tuple[int, int]] = {}
        self._counts = Counts()
        self._counted_at = 0.0
        self._rates: Mapping[int, float] = {}
        self._changed: dict[str, float] = {}
        self._trouble: dict[str, str] = {}

    def turn(self, now: float) -> None:
        """Counts, and looks where that is called for; what cannot be had is told by `lines`.

        ``now`` is of the monotonic clock.
        """
        due = self._read_manifest() or now - self._looked_at >= LOOK_SECONDS
        gone = self._renew_counts(now)
        if self._manifest and (due or gone or self._pins != self._pins_now()):
            self._renew_maps(self._manifest, now)

    def _read_manifest(self) -> bool:
        """Whether it is another one than in the turn before."""
        try:
            texts = read_files(self._config, self._trust)
            if texts == self._texts:
                return False
            self._texts = texts
            self._trouble.pop("manifest", None)
            self._manifest = with_accounts(parse_manifest(texts))
        except KeeperError as error:
            self._trouble["manifest"] = str(error)
            return False
        return True

    def _renew_counts(self, now: float) -> bool:
        """Whether a map that is shown is gone."""
        before, seconds = self._counts.entries, now - self._counted_at
        try:
            self._counts = self._count()
            self._trouble.pop("counts", None)
        except KeeperError as error:
            self._trouble["counts"] = str(error)
            return False
        self._counted_at = now
        entries = self._counts.entries
        shown = before.keys() & self._ids()
        self._rates = {
            map_id: (entries[map_id] - before[map_id]) / seconds
            for map_id in shown & entries.keys()
            if seconds > 0
        }
        return bool(shown - entries.keys())

    def _ids(self) -> set[int]:
        inner = {found.id for status in self._maps for found in status.inner}
        return inner | {status.id for status in self._maps if status.id is not None}

    def _pins_now(self) -> Mapping[str, tuple[int, int]]:
        """What tells that something else is pinned under a name."""
        found = {}
        assert self._manifest
        layout = Layout(self._manifest.pin_root)
        for status in self._maps:
            with suppress(OSError):
                pin = os.lstat(layout.map(status.name))
                found[status.name] = pin.st_dev, pin.st_ino
        return found

    def _renew_maps(self, manifest: Manifest, now: float) -> None:
        try:
            with try_reading(open_own(manifest.pin_root)) as quiet:
                if not quiet:
                    self._trouble["look"] = self._waiting(now)
                    return
                status = self._look(manifest)
        except KeeperError as error:
            self._trouble["look"] = str(error)
            return
        self._trouble.pop("look", None)
        former = {found.name: found.id for found in self._maps}
        for found in status.maps:
            if former.get(found.name, found.id) not in (found.id, None):
                self._changed[found.name] = now
        self._maps, self._looked_at = status.maps, now
        self._pins = self._pins_now()

    def _waiting(self, now: float) -> str:
        if self._looked_at < 0:
            return "a reload is under way: nothing was seen yet"
        return f"a reload is under way: IDs and pins are of {age(now - self._looked_at)} ago"

    def lines(self, screen: Screen, height: int, *, now: float, clock: float) -> list[str]:
        """What fits on the screen. ``now`` as for `turn`, ``clock`` is Unix time."""
        messages = list(self._messages(screen))[: max(height // 3, 1)]
        lines = [screen.paint(self._headline(screen, clock), Style.HEAD), *messages, ""]
        changed = {name for name, at in self._changed.items() if now - at < CHANGED_SECONDS}
        motion = Motion(self._rates, changed)
        laid = lay_out_maps(self._maps, self._counts, screen, now=clock, motion=motion)
        if self._maps:
            lines.append(laid.head)
        lines += _fitting(laid.rows, height - len(lines))
        return lines[:height]

    def _headline(self, screen: Screen, clock: float) -> str:
        root = self._manifest.pin_root if self._manifest else self._config
        parts = (time.strftime("%H:%M:%S", time.localtime(clock)), root)
        text = "  ".join((*parts, counted(len(self._maps), "map"), "q ends"))
        text = visible(text, unicode=screen.unicode)
        return shortened(text, screen.width or len(text), unicode=screen.unicode)

    def _messages(self, screen: Screen) -> Iterator[str]:
        """Without the line of the manifest that a problem is at, which is indented."""
        told = [*self._trouble.values(), self._counts.problem]
        for text in (line for message in told for line in message.splitlines()):
            if not text.startswith(" "):
                for line in wrapped(visible(text, unicode=screen.unicode), screen.width):
                    yield screen.paint(line, Style.WARNING)


def _fitting(rows: Iterable[Iterable[str]], height: int) -> list[str]:
    """The lines of as many rows as there is room for, and how many there is none for."""
    groups = [list(row) for row in rows]
    total = sum(map(len, groups))
    if total <= height:
        return [line for group in groups for line in group]
    lines, shown = list[str](), 0
    while shown < len(groups) and len(lines) + len(groups[shown]) < height:
        lines += groups[shown]
        shown += 1
    return [*lines, f"and {len(groups) - shown} more"]


def watch_maps(config: str, look: Look, count: Count, seconds: float, trust: Trust) -> None:
    """Shows the maps on the terminal every so many seconds, until q or Ctrl-C.

    Raises:
        KeeperError: standard output is no terminal, or one that can only be written line by line.
    """
    if not sys.stdout or not sys.stdout.isatty():
        raise KeeperError(
            "cannot watch the maps: standard output is no terminal: use `maps --json` in a loop"
        )
    if os.environ.get("TERM", "dumb") == "dumb":
        raise KeeperError("cannot watch the maps: this terminal (TERM=dumb) cannot be painted on")
    watch = MapWatch(config, look, count, trust)
    screen = screen_of(sys.stdout)
    with suppress(KeyboardInterrupt), full_screen() as terminal:
        due = time.monotonic()
        while True:
            if (now := time.monotonic()) >= due:
                watch.turn(now)
                due = max(due + seconds, time.monotonic())
            columns, height = size_of(sys.stdout.fileno())
            fitted = Screen(columns, screen.colour, screen.unicode)
            now = time.monotonic()
            terminal.paint(watch.lines(fitted, height, now=now, clock=time.time()), height)
            if "q" in terminal.wait(due - time.monotonic()):
                return
