# SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
"""Gentle traffic for the demonstration: TCP connections, most of them kept open, and some UDP.

``traffic.py serve PID`` answers and ``traffic.py call PID`` calls it, from another network
namespace. Both end when process PID, the daemon, ends, however that comes about.
"""

import asyncio
import os
import random
import socket
import sys

CALLER = "192.0.2.1"
SERVER = "192.0.2.2"
SERVER_TOO = [f"198.51.100.{host}" for host in range(256)]
ECHO_PORT = 7
DISCARD_PORT = 9  # nobody listens, so ICMP comes back


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            writer.write(line)
    finally:
        writer.close()


async def talk(lines: int) -> None:
    """One connection: a line every two seconds."""
    try:
        reader, writer = await asyncio.open_connection(SERVER, ECHO_PORT)
        for _ in range(lines):
            writer.write(b"still here\n")
            await reader.readline()
            await asyncio.sleep(2)
        writer.close()
    except OSError:  # the server is not there yet
        await asyncio.sleep(1)


async def keep_talking(lines: int, start_after: float = 0) -> None:
    await asyncio.sleep(start_after)
    while True:
        await talk(lines)


async def datagrams(addresses: list[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while True:
            sender.sendto(b"hello", (random.choice(addresses), DISCARD_PORT))
            await asyncio.sleep(0.5)


async def serve() -> None:
    await asyncio.gather(
        asyncio.start_server(echo, "0.0.0.0", ECHO_PORT),
        datagrams([CALLER]),
    )


async def call() -> None:
    # Not all at once, and not before the daemon had time to attach: only a connection that is made
    # after that is seen.
    kept_open = [keep_talking(lines=60, start_after=2 + number / 2) for number in range(8)]
    await asyncio.gather(*kept_open, keep_talking(lines=1), datagrams(SERVER_TOO))


async def until_ended(pid: int, role: str) -> None:
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    asyncio.get_running_loop().add_reader(ended, os._exit, 0)  # whatever is still under way
    await {"serve": serve, "call": call}[role]()


if __name__ == "__main__":
    asyncio.run(until_ended(int(sys.argv[2]), sys.argv[1]))
