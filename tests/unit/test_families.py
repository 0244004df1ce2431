"""The table of metrics, and the reference in README.md that is made of it."""

import re
from pathlib import Path

from bpfkeeperd.families import FAMILIES, PREFIX, Kind, reference_table

README = Path(__file__).parents[2] / "README.md"


def test_the_reference_in_the_readme() -> None:
    _, _, rest = README.read_text().partition(
        "<!-- metrics: made by bpfkeeperd.families.reference_table -->\n"
    )
    table, end, _ = rest.partition("\n<!-- end of metrics -->\n")
    assert end and table == reference_table()


def test_names_are_those_of_the_field() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(f"{PREFIX}[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert family.help.endswith(".") and "\n" not in family.help and "|" not in family.help
        assert all(re.fullmatch("[a-z_]+", label) for label in family.labels)
        assert "id" not in family.labels, "an ID in a label grows without end"
