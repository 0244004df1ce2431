"""The stub: a program that does nothing but call the program in a slot. Pure.

It stays attached where attachments cannot be swapped, and the slot is written instead.
"""

import struct

from bpfkeeperd.hooks import Hook, HookKind, SwapWay

_CALL_TAIL_CALL, _CALL_GET_FUNC_IP = 12, 173
_PASS = 1
"""SK_PASS and NF_ACCEPT."""


def stub_fault(hook: Hook) -> str:
    """Why a program of a hook cannot be called by a stub; empty where it can."""
    if hook.rules.swap not in (SwapWay.OVERLAP, SwapWay.STUB):
        return ""
    if hook.sleepable:
        return "a sleepable program cannot be called through a program array"
    if hook.name == "raw_tracepoint.w":
        # The kernel compares what a program writes with the buffer's size when it is attached.
        return "the kernel would not see how much of the tracepoint's buffer it writes"
    return ""


def stub_instructions(hook: Hook, slot_fd: int) -> bytes:
    """The stub of a hook, which calls through a program array.

    With an empty slot it says what lets things go on: a packet or message passes, nothing is
    changed.
    """
    code = [_instruction(0xBF, 6, 1)]  # r6 = r1, the context
    if hook.kind is HookKind.TRACING and hook.name.startswith("f"):
        # The address is there for those who ask only if what is attached asks for it.
        code += [_instruction(0x85, imm=_CALL_GET_FUNC_IP), _instruction(0xBF, 1, 6)]
    code += [
        _instruction(0x18, 2, 1, imm=slot_fd),  # r2 = the array
        _instruction(0x00),
        _instruction(0xB7, 3),  # r3 = 0, its slot
        _instruction(0x85, imm=_CALL_TAIL_CALL),
    ]
    if hook.name == "sk_skb/stream_parser":
        code.append(_instruction(0x61, 0, 6))  # r0 = skb->len: what is there is a message
    else:
        passing = hook.kind in (HookKind.SOCKMAP, HookKind.NETFILTER)
        code.append(_instruction(0xB7, 0, imm=_PASS if passing else 0))
    code.append(_instruction(0x95))
    return b"".join(code)


def _instruction(code: int, to: int = 0, source: int = 0, imm: int = 0) -> bytes:
    """One ``struct bpf_insn``."""
    registers = to | source << 4
    return struct.pack("=BBhi", code, registers, 0, imm)
