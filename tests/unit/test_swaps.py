"""Which swaps are a link update and nothing else: those go many by one call."""

import pytest

from bpfkeeperd.actions import Swap
from bpfkeeperd.desired import attachment
from bpfkeeperd.enactswaps import is_plain_update
from bpfkeeperd.hooks import CLSACT_LINK, TCX_INGRESS, Hook, hook_of_section
from bpfkeeperd.state import LinkInfo
from bpfkeeperd.targets import CgroupTarget, InterfaceTarget, Target

INTERFACE, CGROUP = InterfaceTarget("eth0"), CgroupTarget("web")
EGRESS, LSM_CGROUP = hook_of_section("cgroup_skb/egress"), hook_of_section("lsm_cgroup/socket_bind")


@pytest.mark.parametrize(
    ("hook", "target", "link_type", "plain"),
    [
        (EGRESS, CGROUP, 3, True),
        (LSM_CGROUP, CGROUP, 3, False),  # the new program may be at another function
        (TCX_INGRESS, INTERFACE, 11, True),
        (TCX_INGRESS, INTERFACE, CLSACT_LINK, False),  # a kernel without TCX: a filter of tc
    ],
)
def test_plain_updates(hook: Hook, target: Target, link_type: int, plain: bool) -> None:
    wanted = attachment("one", "count", hook, target)
    link = LinkInfo(7, 8, link_type, 9, hook.attach_type)
    assert is_plain_update(Swap(wanted, link, wanted.key, "digest", "forced")) is plain
