"""What a manifest can say of a program's health, as a part of the table of fields. Pure."""

from bpfkeeperd.fieldkinds import U32_MAX, Either, Field, Integer, Raw, Struct, Text, Word
from bpfkeeperd.values import pin_name

SECONDS_MAX = 300

_COUNTER = Struct(
    (
        Field("map", Text(pin_name), "A kept map, by the name of its pin.", required=True),
        Field(
            "key",
            Raw(),
            "The entry, as the keys of entries are written: 0 in global data.",
            required=True,
        ),
        Field("member", Text(), "A member of the value. Default: the whole value."),
        Field(
            "offset",
            Integer(0, U32_MAX),
            "Where in the value the counter begins, in bytes, instead of `member`.",
        ),
        Field("size", Integer(1, U32_MAX), "Its bytes. Default: 8.", needs=("offset",)),
    ),
    example="{map: counts, key: 0}",
)

HEALTH = Field(
    "health",
    Struct(
        (
            Field(
                "seconds",
                Integer(1, SECONDS_MAX),
                "How long the program is watched after it was loaded or swapped in.",
                required=True,
            ),
            Field(
                "moves",
                Either((Word(("runs",)), _COUNTER)),
                "What must move within this time: a counter in a map, or `runs`, the program's own"
                " run count.",
            ),
            Field("still", _COUNTER, "What must not move meanwhile, such as a count of errors."),
        ),
        example="{seconds: 10, moves: runs}",
    ),
    "What the program has to show after a reload; else the whole reload is rolled back.",
)
