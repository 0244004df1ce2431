from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpfkeeperd.counting import MapCounter
from tests.scenario import world

__all__ = ["world"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test opens, closed at its end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def counter(stack: ExitStack) -> MapCounter:
    return stack.enter_context(MapCounter.open())
