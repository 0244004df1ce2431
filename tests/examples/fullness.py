"""How full the maps of an example are, as the metrics show it."""

from bpfkeeperd.counting import MapCounter
from tests.examples.conftest import Example


def used(example: Example) -> dict[str, int]:
    """Entries in use of all kept maps that have a count."""
    with MapCounter.open() as counter:
        counts = counter.counts()
    return {name: counts[number] for name, number in example.map_ids().items() if number in counts}
