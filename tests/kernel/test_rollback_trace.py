"""A swap by two links at once: every step of it fails once, and the former link is there again."""

from pathlib import Path

from bpfkeeperd.state import ReloadResult
from bpfkeeperd.steps import Step
from tests.kernel.test_reload import plan_now
from tests.kernel.test_rollback import fail_at_each_step
from tests.kernel.test_trace_hooks import check_served, victim
from tests.kernel.tracing import REGISTERS, Row, Tracing
from tests.scenario import World

__all__ = ["victim"]


def test_every_step_of_an_overlap_is_rolled_back(world: World, victim: Path) -> None:
    tracing = Tracing(world, Row("raw_tp/sys_enter", REGISTERS), victim)
    tracing.put()
    tracing.write()
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        links = world.link_ids()
        failed = fail_at_each_step(world, keeper, force=True)
        assert {Step.SWAP, Step.COMMIT_LINK, Step.COMMIT_PROGRAMS} <= failed
        assert world.link_ids() != links
        check_served(tracing)
        assert plan_now(world) == ()


def test_a_link_that_goes_over_to_another_program_is_rolled_back(
    world: World, victim: Path
) -> None:
    """The former one's pin is under another name."""
    tracing = Tracing(world, Row("raw_tp/sys_enter", REGISTERS), victim)
    tracing.put()
    tracing.write()
    with world.keeper() as keeper:
        assert world.reload(keeper).result is ReloadResult.OK
        tracing.put(PROGRAM="latter")
        text = world.manifest_file.read_text()
        world.manifest_file.write_text(text.replace("{trace:", "{latter:"))
        failed = fail_at_each_step(world, keeper, force=False)
        assert {Step.SWAP, Step.COMMIT_LINK} <= failed
        (path,) = world.link_ids()
        assert path.startswith("one/latter/")
        check_served(tracing)
        assert plan_now(world) == ()
