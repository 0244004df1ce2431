"""What is written for a key or a value, as bytes of its shape. Pure.

Integers stand in the machine's byte order, but for the types that are in network order. An IP or
MAC address is the same bytes everywhere: any field of its size takes one, without regard to type.
"""

import ipaddress
import re
from collections.abc import Iterator
from sys import byteorder
from typing import assert_never

from bpfkeeperd.nodes import (
    BrokenNode,
    Faults,
    ListNode,
    MappingNode,
    Node,
    Place,
    ScalarNode,
    flow,
    form,
)
from bpfkeeperd.shapes import Array, Form, Member, Scalar, Shape, Struct
from bpfkeeperd.suggest import did_you_mean
from bpfkeeperd.values import Fault, boolean, integer, shown

_MAC = re.compile("[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_ADDRESS_SIZES = {4: "an IPv4 address", 6: "a MAC address", 16: "an IPv6 address"}


def encode(shape: Shape, node: Node, place: Place, faults: Faults) -> bytes | None:
    """The bytes of a written value; None when it has a fault, which then is in ``faults``."""
    if isinstance(node, BrokenNode):
        return None
    data = _raw(shape, node)
    if data is None and isinstance(node, ScalarNode):
        data = _text(shape, node)
    if isinstance(data, Fault):
        faults.add(node.mark, f"{place} {data.message}", data.remedy)
        return None
    if data is not None:
        return data
    match shape:
        case Array() if isinstance(node, ListNode):
            return _array(shape, node, place, faults)
        case Struct() if isinstance(node, MappingNode):
            return _struct(shape, node, place, faults)
        case _:
            message = f"{place} must be {_noun(shape)}, not {form(node)}"
            faults.add(node.mark, message, _remedy(shape))
            return None


def _noun(shape: Shape) -> str:
    match shape:
        case Scalar(form=Form.BOOL):
            return "true or false"
        case Scalar(form=Form.ADDRESS):
            return _ADDRESS_SIZES[shape.size]
        case Scalar(form=Form.OPAQUE):
            return "bytes"
        case Scalar():
            return "an integer"
        case Array(element=Scalar(form=Form.CHAR)):
            return "text"
        case Array(count=count):
            return f"a list of {count}"
        case Struct():
            return "a mapping"
        case _:
            assert_never(shape)


def _remedy(shape: Shape) -> str:
    match shape:
        case Struct():
            return f"write {{{', '.join(f'{name}: …' for name, _ in _named(shape))}}}"
        case Scalar(form=Form.OPAQUE):
            return _hex_remedy(shape.size)
        case _:
            return ""


def _hex_remedy(size: int) -> str:
    return f"write {{hex: {' '.join(['00'] * size) if size <= 4 else '00 01 …'}}} of {size} bytes"


def _raw(shape: Shape, node: Node) -> bytes | Fault | None:
    """The bytes of ``{hex: 00 01}``, or of 0x and digits where no number can stand."""
    match node:
        case MappingNode(pairs=((ScalarNode(text="hex"), ScalarNode(text=digits)),)):
            if isinstance(shape, Struct) and "hex" in dict(_named(shape)):
                return None
            digits = re.sub("[ :]", "", digits).removeprefix("0x")
        case ScalarNode(text=text) if text.startswith("0x") and not _is_number(shape):
            if len(text) != 2 + 2 * shape.size and _is_text(shape):
                return None
            digits = text[2:]
        case _:
            return None
    if len(digits) % 2 or not re.fullmatch("[0-9a-fA-F]*", digits):
        return Fault(
            f"must be bytes, not {shown(digits)}", "write two hexadecimal digits for each byte"
        )
    if len(digits) != 2 * shape.size:
        return Fault(f"must have {shape.size} bytes, not {len(digits) // 2}")
    return bytes.fromhex(digits)


def _is_number(shape: Shape) -> bool:
    return isinstance(shape, Scalar) and shape.form is not Form.OPAQUE


def _is_text(shape: Shape) -> bool:
    """Whether characters can stand for it; a layout does not tell char from other bytes."""
    match shape:
        case Array(element=Scalar(form=Form.CHAR)):
            return True
        case Array(element=Scalar(name="", bits=8, form=Form.INTEGER)):
            return True
        case _:
            return False


def _text(shape: Shape, node: ScalarNode) -> bytes | Fault | None:
    """What one word stands for; None where the shape takes none."""
    if node.is_null:
        return Fault("has no value", "write one")
    is_char = isinstance(shape, Array) and shape.element == Scalar("char", 8, Form.CHAR)
    address = None if is_char else _address(node.text, shape.size)
    if address is not None:
        return address
    if _is_text(shape):
        data = node.text.encode()
        if len(data) > shape.size:
            return Fault(f"{shown(node.text)} has {len(data)} bytes, at most {shape.size} fit")
        return data.ljust(shape.size, b"\0")
    return _scalar(shape, node) if isinstance(shape, Scalar) else None


def _address(text: str, size: int) -> bytes | None:
    """The bytes of an IP or MAC address of a size; None for all else."""
    match size:
        case 4 | 16:
            try:
                kind = ipaddress.IPv4Address if size == 4 else ipaddress.IPv6Address
                return kind(text).packed if "%" not in text else None
            except ValueError:
                return None
        case 6 if _MAC.fullmatch(text):
            return bytes.fromhex(text.replace(":", ""))
        case _:
            return None


def _scalar(shape: Scalar, node: ScalarNode) -> bytes | Fault | None:
    bits = shape.bits
    match shape.form:
        case Form.BOOL:
            flag = boolean(node.text, node.plain)
            return flag if isinstance(flag, Fault) else bytes([flag])
        case Form.ADDRESS:
            remedy = "for example " + ("10.0.0.1" if shape.size == 4 else "2001:db8::1")
            return Fault(f"must be {_noun(shape)}, not {shown(node.text)}", remedy)
        case Form.OPAQUE:
            return None
        case Form.SIGNED:
            number = integer(node.text, node.plain, -(1 << bits - 1), (1 << bits - 1) - 1)
        case Form.INTEGER if node.text.startswith("-"):
            number = integer(node.text, node.plain, -(1 << bits - 1), (1 << bits) - 1)
        case Form.INTEGER if node.plain and node.text in ("true", "false"):
            number = int(node.text == "true")  # a layout does not tell bool from other integers
        case Form.UNSIGNED | Form.NETWORK | Form.INTEGER | Form.CHAR:
            number = integer(node.text, node.plain, 0, (1 << bits) - 1)
        case _:
            assert_never(shape.form)
    if isinstance(number, Fault):
        if shape.size in _ADDRESS_SIZES and (":" in node.text or node.text.count(".") == 3):
            message = f"must be an integer or {_ADDRESS_SIZES[shape.size]}, not {shown(node.text)}"
            return Fault(message)
        return number
    order = "big" if shape.form is Form.NETWORK else byteorder
    return (number & (1 << bits) - 1).to_bytes(shape.size, order)


def _array(shape: Array, node: ListNode, place: Place, faults: Faults) -> bytes | None:
    if len(node.items) != shape.count:
        message = f"{place} must have {shape.count} elements, not {len(node.items)}"
        faults.add(node.mark, message)
        return None
    elements = [
        encode(shape.element, item, place.item(index, item.mark), faults)
        for index, item in enumerate(node.items)
    ]
    found = [element for element in elements if element is not None]
    return b"".join(found) if len(found) == len(elements) else None


def _named(shape: Struct, offset: int = 0) -> Iterator[tuple[str, Member]]:
    """The members by name, those of unions without a name too, placed from the outer start."""
    for member in shape.members:
        start = offset + member.bit_offset
        if member.name:
            yield member.name, Member(member.name, start, member.shape)
        elif isinstance(member.shape, Struct):
            yield from _named(member.shape, start)


def _struct(shape: Struct, node: MappingNode, place: Place, faults: Faults) -> bytes | None:
    members = dict(_named(shape))
    given: dict[str, Node] = {}
    good = True
    for key, value in node.pairs:
        if key.text not in members:
            message = f"{place} has no member {shown(key.text)}"
            faults.add(key.mark, message, did_you_mean(key.text[:40], members))
            good = False
        elif key.text in given:
            faults.add(key.mark, f"{place} has {shown(key.text)} twice", "remove one of them")
            good = False
        given[key.text] = value
    missing = _missing(shape, given)
    if missing and good:
        message = f"{place} lacks {', '.join(missing)}"
        faults.add(node.mark, message, "write every member, 0 where there is nothing to say")
    overlap = _overlap([members[name] for name in given if name in members])
    if overlap:
        message = f"{place} has both {overlap[0]} and {overlap[1]}, which share their bytes"
        faults.add(node.mark, message, "a union holds one of them: keep that")
    good = not (missing or overlap) and good
    whole = bytearray(shape.size)
    for name, value in given.items():
        member = members.get(name)
        if member is None:
            continue
        data = encode(member.shape, value, place.under(name, value.mark), faults)
        if data is None:
            good = False
        else:
            _put(whole, member, data)
    return bytes(whole) if good else None


def _missing(shape: Struct, given: dict[str, Node]) -> list[str]:
    """The members that are not written; of a union one is enough."""
    missing = []
    for member in shape.members:
        if not member.name and isinstance(member.shape, Struct):
            names = [name for name, _ in _named(member.shape)]
            if names and not any(name in given for name in names):
                missing.append(" or ".join(names))
        elif member.name not in given:
            missing.append(member.name)
    return missing


def _overlap(members: list[Member]) -> tuple[str, str] | None:
    """Two members that stand in the same place, as those of a union do."""
    end, before = 0, ""
    for member in sorted(members, key=lambda one: one.bit_offset):
        if member.bit_offset < end:
            return before, member.name
        end, before = member.bit_offset + _bits(member.shape), member.name
    return None


def _bits(shape: Shape) -> int:
    return shape.bits if isinstance(shape, Scalar) else 8 * shape.size


def _put(whole: bytearray, member: Member, data: bytes) -> None:
    """Writes a member in its place, whatever its neighbours in the same byte hold."""
    start, bits = member.bit_offset, _bits(member.shape)
    if start % 8 == 0 and bits % 8 == 0:
        whole[start // 8 : start // 8 + len(data)] = data
        return
    shift = start if byteorder == "little" else 8 * len(whole) - start - bits
    number = int.from_bytes(whole, byteorder) | int.from_bytes(data, byteorder) << shift
    whole[:] = number.to_bytes(len(whole), byteorder)


def lpm_key(size: int, node: ScalarNode, place: Place, faults: Faults) -> bytes | None:
    """The key of an LPM_TRIE for a prefix such as 10.0.0.0/8: its length, then the address."""
    try:
        network = ipaddress.ip_network(node.text, strict=False)
    except ValueError:
        remedy = "write a prefix such as " + ("10.0.0.0/8" if size == 8 else "2001:db8::/32")
        faults.add(node.mark, f"{place} must be a prefix, not {shown(node.text)}", remedy)
        return None
    if network.max_prefixlen != 8 * (size - 4):
        message = f"{place} has {size - 4} bytes of address, an IPv{network.version} prefix has"
        faults.add(node.mark, f"{message} {network.max_prefixlen // 8}")
        return None
    address = ipaddress.ip_address(node.text.partition("/")[0]).packed
    return network.prefixlen.to_bytes(4, byteorder) + address


def lpm_fault(key: bytes, node: Node) -> Fault | None:
    """What is wrong with the key of an LPM_TRIE: its length, or bits set after the prefix."""
    length, address = int.from_bytes(key[:4], byteorder), key[4:]
    most = 8 * len(address)
    if length > most:
        return Fault(f"has a prefix of {length} bits", f"the address has {most}")
    rest = most - length
    prefix = (int.from_bytes(address, "big") >> rest << rest).to_bytes(len(address), "big")
    if prefix == address:
        return None
    right = str(ipaddress.ip_address(prefix)) if len(prefix) in (4, 16) else f"0x{prefix.hex()}"
    message = f"{shown(flow(node))} has bits set after the first {length}"
    return Fault(message, f"the prefix is {right}/{length}")
