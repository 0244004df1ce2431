"""What a program has to show after it was loaded: a counter that moves, one that must not. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import byteorder

from bpfkeeperd.maptypes import BY_NUMBER

NUMBER_MAX_BYTES = 8
"""Wider counters are compared as bytes."""


@dataclass(frozen=True, slots=True)
class MapCounter:
    """Bytes of a value in a kept map."""

    map: str
    """The pin name."""
    key: bytes
    size: int
    offset: int = 0
    """Both in bytes; of a per-CPU map in the value of each CPU."""
    text: str = ""
    """What messages call it."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Runs:
    """How often the kernel ran a program."""

    def __str__(self) -> str:
        return "its run count"


Counter = MapCounter | Runs
Reading = int | bytes
"""A sum over all CPUs where it is a number; else the bytes of all CPUs."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the manifest wants to see of one program."""

    seconds: int
    moves: Counter | None = None
    """This must move before the time is over."""
    still: MapCounter | None = None
    """This must not, as long as it lasts."""

    @property
    def counters(self) -> tuple[Counter, ...]:
        return tuple(counter for counter in (self.moves, self.still) if counter)

    def __str__(self) -> str:
        moves = f"{self.moves} must move" if self.moves else ""
        still = f"{self.still} must not move" if self.still else ""
        return f"within {self.seconds} s {' and '.join(part for part in (moves, still) if part)}"


@dataclass(frozen=True, slots=True)
class Trial:
    """A program that is loaded or swapped in, and has to show that it works."""

    object: str
    program: str
    health: Health

    def __str__(self) -> str:
        return f"judge {self.object}/{self.program}: {self.health}"


def reading(counter: MapCounter, stored: bytes | None, cpu_bytes: int) -> Reading:
    """A counter in the bytes of a value, which of a per-CPU map has ``cpu_bytes`` for each CPU.

    An entry that is not there is one of zeros: an error counter of a hash begins with its first
    error.
    """
    stored = stored or bytes(cpu_bytes)
    start, end = counter.offset, counter.offset + counter.size
    parts = [stored[at + start : at + end] for at in range(0, len(stored), cpu_bytes)]
    if counter.size <= NUMBER_MAX_BYTES:
        total = sum(int.from_bytes(part, byteorder) for part in parts)
        return total & (1 << 8 * counter.size) - 1
    whole = b"".join(parts)
    return whole if any(whole) else b""


def value_bytes(map_type: int, value_size: int, cpus: int) -> tuple[int, int]:
    """Bytes of a value as the kernel gives it: of each CPU, and of all."""
    known = BY_NUMBER.get(map_type)
    if not known or not known.per_cpu:
        return value_size, value_size
    each = -(-value_size // 8) * 8
    return each, each * cpus


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a program so far."""

    over: bool
    fault: str = ""
    """What the counter did; empty where there is nothing to complain of."""
    note: str = ""
    """What is to be said of a program that is fine."""


def judge(
    trial: Trial, seconds: float, before: Mapping[Counter, Reading], now: Mapping[Counter, Reading]
) -> Verdict:
    """Judges a program by its counters when the trial began and so many seconds later."""
    health = trial.health
    who = f"{trial.object}/{trial.program}"
    moves, still = health.moves, health.still
    if still and now[still] != before[still]:
        how = f"moved{_from_to(before[still], now[still])} after {seconds:.1f} s, and must not"
        return Verdict(over=True, fault=f"{who}: {still} {how}")
    moved = moves is None or now[moves] != before[moves]
    if seconds < health.seconds and (still or not moved):
        return Verdict(over=False)
    if moves and not moved:
        stays = before[moves]
        at = f" (it stays at {stays})" if isinstance(stays, int) else ""
        how = f"did not move within {health.seconds} s{at}"
        return Verdict(over=True, fault=f"{who}: {moves} {how}")
    said = []
    if moves:
        said.append(f"{moves} moved{_from_to(before[moves], now[moves])}")
    if still:
        said.append(f"{still} did not move")
    return Verdict(over=True, note=f"{who} is healthy: {', '.join(said)} ({seconds:.1f} s)")


def _from_to(before: Reading, now: Reading) -> str:
    if isinstance(before, int) and isinstance(now, int):
        return f" from {before} to {now}"
    return ""
