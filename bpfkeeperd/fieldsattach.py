"""The part of the table of fields (see fields) that says where programs are attached, and how."""

from bpfkeeperd.entries import SwapChoice
from bpfkeeperd.fieldkinds import (
    S63_MAX,
    Boolean,
    Either,
    Field,
    Integer,
    ListOf,
    Struct,
    Text,
    Word,
)
from bpfkeeperd.fieldshealth import HEALTH
from bpfkeeperd.targets import NF_FAMILIES, NF_HOOKS, PERF_EVENTS, XdpMode
from bpfkeeperd.values import (
    binary,
    cgroup,
    interface,
    netns,
    pin_name,
    program_kind,
    symbol,
    tracepoint,
)

TARGETS = (
    *("cgroup", "interface", "map", "function", "tracepoint", "binary", "perf_event"),
    "netfilter",
)
"""The fields of an attachment that say where; ``netns`` does where it stands alone."""

_ATTACH_KINDS = "attach: [{cgroup: PATH}], attach: [{interface: NAME}] or attach: auto"

ATTACH = Struct(
    (
        Field(
            "cgroup",
            Text(cgroup),
            "A cgroup v2 directory: absolute, or relative to the cgroup2 mount. With `*`, `?` or"
            " `[a-z]`: all that match, also those that come later.",
        ),
        Field(
            "interface",
            Text(interface, r"^[^\s/:]{1,64}$"),
            "A network interface, by name; a pattern as for cgroups.",
        ),
        Field(
            "netns",
            Text(netns),
            "The network namespace: a name under /run/netns, or an absolute path. Alone: the target"
            " of sk_lookup and flow_dissector. Default: the daemon's own.",
            beside=("interface", "netfilter"),
        ),
        Field(
            "map",
            Text(pin_name),
            "The map of sockets of sk_skb and sk_msg programs, or the one that an iterator goes"
            " through: its pin name, or its name in the object.",
        ),
        Field("function", Text(symbol), "A function of the kernel; kprobe.multi takes a pattern."),
        Field("tracepoint", Text(tracepoint), "`GROUP/NAME`; a raw tracepoint has a name alone."),
        Field("binary", Text(binary), "An executable or a library, by its absolute path."),
        Field(
            "symbol",
            Text(symbol),
            "A function in the binary; uprobe.multi takes a pattern.",
            needs=("binary",),
        ),
        Field(
            "offset",
            Integer(0, S63_MAX),
            "Bytes after the function's beginning; in a binary without `symbol`, after the file's.",
            beside=("function", "binary"),
        ),
        Field("perf_event", Word(tuple(PERF_EVENTS)), "An event, as perf(1) calls it."),
        Field(
            "frequency",
            Integer(1, 100_000),
            "How often a perf event runs the program, in times a second.",
            needs=("perf_event",),
        ),
        Field(
            "period",
            Integer(1, S63_MAX),
            "Every how many events it does, instead of `frequency`.",
            needs=("perf_event",),
        ),
        Field("cpu", Integer(0, 65535), "This CPU only. Default: each.", needs=("perf_event",)),
        Field(
            "pid",
            Integer(1, 2**22),
            "This process only. Default: all.",
            beside=("binary", "perf_event"),
        ),
        Field(
            "netfilter",
            Word(tuple(f"{family}/{hook}" for family in NF_FAMILIES for hook in NF_HOOKS)),
            "A netfilter hook.",
        ),
        Field(
            "priority",
            Integer(-(2**31), 2**31 - 1),
            "The place among others: of netfilter (required), and of clsact (1 to 65535, default"
            " 49152). The lower comes first.",
            beside=("netfilter", "interface"),
        ),
        Field(
            "defrag",
            Boolean(),
            "Fragments of packets are put together first.",
            needs=("netfilter",),
        ),
        Field(
            "before",
            Text(),
            "Of tcx and netkit: it runs before this program, `OBJECT/PROGRAM` of the manifest or"
            " the kernel's name of another; `*`: before all.",
        ),
        Field("after", Text(), "Likewise; `*`: after all, which is the default."),
        Field(
            "take_over",
            Boolean(),
            "A program that somebody else attached there gives way to this one.",
            default=False,
        ),
        Field(
            "mode",
            Word(tuple(XdpMode)),
            "For XDP: `native` runs in the driver, `generic` behind it, `auto` takes the best"
            " there is.",
            default=XdpMode.AUTO,
            needs=("interface",),
        ),
    ),
    example="{cgroup: PATH} or {interface: NAME}",
    one_of=TARGETS,
    alone=("netns",),
)

PROGRAM = Struct(
    (
        Field(
            "attach",
            Either(
                (ListOf(ATTACH, _ATTACH_KINDS), Word(("auto",), write=f"write {_ATTACH_KINDS}"))
            ),
            "The targets; the hook is in the program's section name. `auto`: the section names the"
            " place, too. None: the program is loaded and pinned only.",
        ),
        Field(
            "type",
            Text(program_kind),
            "The program's type, as bpftool spells it, or its hook, such as `tcx/ingress`: where"
            " the section name does not say.",
        ),
        Field(
            "swap",
            Word(tuple(SwapChoice)),
            "How the next version takes its place. `exact`: behind a stub, where the hook would"
            " have both run for a moment.",
            default=SwapChoice.DEFAULT,
        ),
        HEALTH,
    ),
    example="{attach: [{cgroup: PATH}]}",
    elsewhere=dict.fromkeys(
        ("cgroup", "interface", "netns", "mode", "map", "function", "tracepoint", "binary"),
        "a target is an item of attach: write attach: [{cgroup: PATH}] or"
        " attach: [{interface: NAME}]",
    ),
)
