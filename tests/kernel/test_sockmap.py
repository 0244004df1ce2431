"""Programs attached to maps of sockets: swapped under the sockets that are in them."""

from contextlib import ExitStack

import pytest

from bpfkeeperd.state import ReloadResult
from tests.kernel.exactness import connection, messages, put_socket, seen, total
from tests.kernel.test_reload import plan_now
from tests.scenario import World, refused

SK_MSG = {"HOOK": '"sk_msg"', "CONTEXT": "struct sk_msg_md", "SIZE": "ctx->size", "VERDICT": 1}
SK_SKB = {"CONTEXT": "struct __sk_buff", "SIZE": "ctx->len"}
VERDICT = SK_SKB | {"HOOK": '"sk_skb/stream_verdict"', "VERDICT": 1}
PARSER = SK_SKB | {"HOOK": '"sk_skb/stream_parser"', "VERDICT": "ctx->len"}
PLAIN = SK_SKB | {"HOOK": '"sk_skb/verdict"', "VERDICT": 1}
HASH = {"TYPE": "BPF_MAP_TYPE_SOCKHASH"}


def put(world: World, name: str, macros: dict[str, object], version: int = 1) -> None:
    """An object that keeps its counts as ``NAME_seen``."""
    world.put(name, "exact", VERSION=version, **macros)


def entry(name: str, target: str, more: str = "") -> str:
    return (
        f"  {name}: {{file: {name}.bpf.o, pin_maps: {{seen: {name}_seen{more}}},\n"
        f"    programs: {{program: {{attach: [{{map: {target}}}]}}}}}}\n"
    )


def stream(world: World) -> dict[str, dict[str, object]]:
    """All kinds: sk_msg at a SOCKHASH of senders, parser and verdict at a SOCKMAP of receivers,
    sk_skb/verdict at one of its own."""
    objects = {
        "msg": SK_MSG | HASH | {"SOCKETS": "senders"},
        "parser": PARSER | {"SOCKETS": "receivers"},
        "verdict": VERDICT,
        "plain": PLAIN | {"SOCKETS": "others"},
    }
    world.write(
        "objects:\n"
        + entry("msg", "senders", ", senders: senders")
        + entry("parser", "receivers", ", receivers: receivers")
        + entry("verdict", "receivers")
        + entry("plain", "others", ", others: others")
    )
    return objects


def test_sockets_in_the_map_get_every_version(world: World) -> None:
    objects = stream(world)
    for name, macros in objects.items():
        put(world, name, macros)
    with world.keeper() as keeper, ExitStack() as stack:
        outcome = world.reload(keeper)
        assert outcome.result is ReloadResult.OK, outcome
        assert all(attachment.up for attachment in keeper.status.attachments), keeper.status
        links = world.link_ids()
        one, two = (stack.enter_context(connection()) for _ in range(2))
        put_socket(world, "senders", 1, one[0])
        put_socket(world, "receivers", 1, one[1])
        put_socket(world, "others", 1, two[1])
        with messages(*one) as sent, messages(*two) as plain:
            for swap in range(1000):
                for name, macros in objects.items():
                    put(world, name, macros, swap % 2 + 1)
                outcome = world.reload(keeper, force=True)
                assert outcome.result is ReloadResult.OK, outcome
        assert world.link_ids() == links
        assert total(world, "msg_seen") == tuple(sent)
        assert total(world, "parser_seen")[1] == total(world, "verdict_seen")[1] == sent[1]
        assert total(world, "plain_seen")[1] == plain[1]
        for name in objects:
            assert min(events for events, _ in seen(world, f"{name}_seen")[1:3]) > 100
    assert plan_now(world) == ()
