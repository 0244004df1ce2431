"""A network namespace with some interfaces, and a host at the other end of each."""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bpfkeeperd import kernel
from tests.machine import ip

ETH_P_IP = 0x0800
SIOCETHTOOL, ETHTOOL_STXCSUM, ETHTOOL_SGRO = 0x8946, 0x17, 0x2C


@dataclass(frozen=True, slots=True)
class Host:
    """One interface, eth0, at the other end of a port."""

    netns: str
    address: str
    mac: str

    def udp(self, port: int = 0, address: str = "") -> socket.socket:
        """A bound UDP socket."""
        with kernel.inside_netns(kernel.netns_path(self.netns)):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((address or self.address, port))
        sock.settimeout(5)
        return sock

    def tap(self) -> socket.socket:
        """A packet socket: every IPv4 frame that arrives, for this host or not."""
        with kernel.inside_netns(kernel.netns_path(self.netns)):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind(("eth0", ETH_P_IP))
        sock.settimeout(5)
        return sock


@dataclass(slots=True)
class Ports:
    """A namespace whose interfaces port0, port1, ... lead to hosts, and nothing is said unasked.

    Nothing in it has an address, and nobody asks for one: no ARP, no IPv6.
    """

    netns: str
    hosts: list[Host] = field(default_factory=list)

    def add_host(self, address: str, mac: str) -> Host:
        number = len(self.hosts)
        host = Host(f"{self.netns}-{number}", address, mac)
        _add_netns(host.netns)
        self.hosts.append(host)
        port, peer = f"port{number}", ("peer", "name", "eth0", "netns", host.netns)
        ip("-n", self.netns, "link", "add", port, "type", "veth", *peer)
        ip("-n", self.netns, "link", "set", port, "address", port_mac(number))
        ip("-n", host.netns, "link", "set", "eth0", "address", mac)
        ip("-n", host.netns, "address", "add", f"{address}/24", "dev", "eth0")
        with kernel.inside_netns(kernel.netns_path(host.netns)):
            _ethtool("eth0", ETHTOOL_SGRO, 1)  # or a veth takes nothing that XDP forwards to it
            _ethtool("eth0", ETHTOOL_STXCSUM, 0)  # a sum left to hardware would never be filled in
        ip("-n", self.netns, "link", "set", port, "up")
        ip("-n", host.netns, "link", "set", "eth0", "up")
        return host

    def index(self, number: int) -> int:
        with kernel.inside_netns(kernel.netns_path(self.netns)):
            return kernel.interface_index(f"port{number}")

    def remove(self) -> None:
        for name in (self.netns, *(host.netns for host in self.hosts)):
            subprocess.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def make_ports() -> Iterator[Ports]:
    ports = Ports(f"keeper-{uuid.uuid4().hex[:6]}")
    try:
        _add_netns(ports.netns)
        yield ports
    finally:
        ports.remove()


def _add_netns(name: str) -> None:
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    with kernel.inside_netns(kernel.netns_path(name)):
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def port_mac(number: int) -> str:
    return f"02:00:00:ff:00:{number:02x}"


def know(host: Host, address: str, mac: str) -> None:
    """Tells a host a neighbour, once and for all."""
    ip("-n", host.netns, "neighbour", "replace", address, "lladdr", mac, "dev", "eth0")


def _ethtool(interface: str, command: int, value: int) -> None:
    """What `ethtool -K` does."""
    argument = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("16sQ16x", interface.encode(), ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)


def send(sender: socket.socket, receiver: socket.socket, packets: int) -> None:
    """Sends packets one at a time, each when the one before has arrived."""
    for number in range(packets):
        text = f"{number} of {packets}".encode() + os.urandom(16)
        sender.sendto(text, receiver.getsockname())
        assert receiver.recv(100) == text
