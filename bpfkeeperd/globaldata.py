"""Global data (.data, .bss) as variables with places, as the layout of its map tells. Pure.

A layout has a line ``bit offset:bits:variable:name`` for each variable, before those of its parts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    offset: int
    """In bytes."""
    size: int
    """In bytes."""
    parts: tuple[str, ...]
    """The layout of its type, from its own start."""
    ambiguous: bool = False
    """Static variables of several files have this name: nobody can tell which is which."""

    def same(self, other: "Variable") -> bool:
        """Whether the bytes mean the same."""
        if self.ambiguous or other.ambiguous:
            return False
        return (self.size, self.parts) == (other.size, other.parts)


def variables(layout: str) -> Mapping[str, Variable]:
    """The variables of a section, by name."""
    found: dict[str, Variable] = {}
    name, offset, size, parts = "", 0, 0, list[str]()
    for line in (*layout.splitlines(), "0:0:variable:"):
        bit_offset, bits, kind, path = line.split(":", 3)
        if kind != "variable":
            # A struct's member: its name in the struct, without the variable's.
            parts.append(f"{int(bit_offset) - 8 * offset}:{bits}:{kind}:{path[len(name) :]}")
            continue
        if name:
            found[name] = Variable(offset, size, tuple(parts), ambiguous=name in found)
        name, offset, size, parts = path, int(bit_offset) // 8, int(bits) // 8, []
    return found


def carried_over(
    old: bytes,
    new: bytes,
    have: Mapping[str, Variable],
    want: Mapping[str, Variable],
    names: Iterable[str],
) -> bytes:
    """The new section's bytes with the values that the named variables have in the old one's."""
    data = bytearray(new)
    for name in names:
        source, place = have[name], want[name]
        value = old[source.offset : source.offset + source.size]
        data[place.offset : place.offset + place.size] = value
    return bytes(data)
