from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfkeeperd.counting import PROGRAMS, MapCounter
from tests.scenario import world

__all__ = ["world"]

LOCKDOWN = Path("/sys/kernel/security/lockdown")
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")


def locked_down() -> bool:
    """Whether this kernel keeps its memory to itself."""
    return LOCKDOWN.exists() and "[confidentiality]" in LOCKDOWN.read_text()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test opens, closed at its end."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(params=["map_counts", "map_counts_lockdown"])
def counter(request: pytest.FixtureRequest, stack: ExitStack) -> MapCounter:
    """The best for a kernel that is locked down and for others, as far as this one takes it."""
    if request.param == "map_counts":
        if locked_down():
            pytest.skip("this kernel is locked down: it has no bpf_probe_read_kernel()")
    elif b"\0bpf_rdonly_cast\0" not in KERNEL_BTF.read_bytes():
        pytest.skip("this kernel has no bpf_rdonly_cast()")
    locked = request.param == "map_counts_lockdown"
    programs = [one for one in PROGRAMS if (one.object_name == "map_counts_lockdown") == locked]
    return stack.enter_context(MapCounter.open(programs))


@pytest.fixture
def best(stack: ExitStack) -> MapCounter:
    """As it is opened in earnest."""
    return stack.enter_context(MapCounter.open())
