"""Inputs made from others: bytes, words and ranges changed, moved and cut."""

import random
import struct

NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 24, 64, 0x7F, 0xFF, 0x100, 0xFFFF, 0x7FFFFFFF, 0x80000000)
LARGE = (0xFFFFFFFF, 0xFFFFFFFE, 0x1000000, 0xFFFFFF, 0xFF00)
SIZE_MAX = 64 << 10


def mutated(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A few changes, one mostly: most inputs go on to be read a long way."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        _change(chance, changed, others)
    return bytes(changed[:SIZE_MAX])


def _change(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    if len(data) < 8:
        data += chance.randbytes(8)
    place = chance.randrange(len(data) - 4)
    word = place & ~3
    match chance.randrange(10):
        case 0:
            data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place] = chance.randrange(256)
        case 2 | 3:
            struct.pack_into("<I", data, word, chance.choice(NUMBERS + LARGE))
        case 4 | 5:
            (number,) = struct.unpack_from("<I", data, word)
            struct.pack_into(
                "<I", data, word, (number + chance.choice((-8, -4, -1, 1, 4, 8))) % 2**32
            )
        case 6:
            other = chance.randrange(len(data) - 4) & ~3
            data[word : word + 4] = data[other : other + 4]
        case 7:
            size = chance.choice((1, 4, 12, 24, 64))
            data[place:place] = data[place : place + size]
        case 8:
            del data[place : place + chance.choice((1, 4, 12, 24, 64))]
        case _:
            other_data = chance.choice(others)
            start = chance.randrange(len(other_data)) & ~3
            size = chance.choice((4, 12, 24, 64, 256))
            data[word : word + size] = other_data[start : start + size]
