"""The metrics endpoint of a running daemon: TLS, clients that say nothing, sockets of the service
manager."""

import json
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.certificates import Pair, client_context, issue, make_authority, served_serial
from tests.scenario import World
from tests.system.conftest import Start
from tests.system.process import METRICS, WAIT_SECONDS, DaemonProcess, cli

SILENT_CLIENTS = 500


class Certified(NamedTuple):
    authority: Pair
    host: Pair
    scraper: Pair


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    authority = make_authority(tmp_path, "authority")
    return Certified(authority, issue(authority, "host"), issue(authority, "scraper"))


def tls(found: Certified, *, clients_too: bool = False) -> str:
    ca = f", client_ca: {found.authority.certificate}" if clients_too else ""
    files = f"certificate: {found.host.certificate}, key: {found.host.key}{ca}"
    return f'metrics: {{listen: "127.0.0.1:0", tls: {{{files}}}}}'


def prepare(world: World, metrics: str) -> None:
    world.put("one")
    world.write_counter("one", extra=metrics)


def address(daemon: DaemonProcess) -> tuple[str, int]:
    host, port = daemon.metrics_url.split("/")[2].rsplit(":", 1)
    return host, int(port)


def scrape(daemon: DaemonProcess, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(daemon.metrics_url, timeout=5, context=context) as answer:
        text: str = answer.read().decode()
    assert "\nbpfkeeper_map_id{" in text
    return text


def test_tls_with_certificates_of_clients(world: World, start: Start, certified: Certified) -> None:
    prepare(world, tls(certified, clients_too=True))
    daemon = start()
    assert daemon.metrics_url.startswith("https://127.0.0.1:")
    scrape(daemon, client_context(certified.authority, certified.scraper))
    with pytest.raises(OSError, match=r"(?i)certificate.required"):
        scrape(daemon, client_context(certified.authority))
    with pytest.raises(OSError, match=r"(?i)verify failed"):  # who does not trust the authority
        scrape(daemon, ssl.create_default_context())
    scrape(daemon, client_context(certified.authority, certified.scraper))


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl(world: World, start: Start, certified: Certified) -> None:
    prepare(world, tls(certified, clients_too=True))
    daemon = start()
    trust = ["--cacert", str(certified.authority.certificate)]
    own = ["--cert", str(certified.scraper.certificate), "--key", str(certified.scraper.key)]

    def curl(*options: str) -> subprocess.CompletedProcess[str]:
        command = ["curl", "-sS", "--max-time", "5", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = curl(*trust, *own, daemon.metrics_url)
    assert "\nbpfkeeper_map_id{" in good.stdout and good.stderr == ""
    assert "bpfkeeperd" in curl(*trust, *own, daemon.metrics_url.replace("metrics", "")).stdout
    assert "certificate required" in curl(*trust, daemon.metrics_url).stderr
    plain = curl("-w", "%{http_code}", daemon.metrics_url.replace("https", "http"))
    assert plain.stdout == "400 TLS is spoken here: write https://\n400"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_silent_clients_do_not_stop_scrapes(
    world: World, start: Start, certified: Certified, secure: bool
) -> None:
    prepare(world, tls(certified) if secure else METRICS)
    daemon = start()
    context = client_context(certified.authority) if secure else None
    scrape(daemon, context)
    daemon.wait_idle()
    threads, descriptors = daemon.threads(), daemon.descriptors()
    with ExitStack() as stack:
        for number in range(SILENT_CLIENTS):
            client = stack.enter_context(socket.create_connection(address(daemon), timeout=5))
            if number % 2:  # what begins a TLS handshake, and what begins a request
                client.sendall(b"\x16\x03\x01" if secure else b"GET /met")
        for _ in range(10):
            started = time.monotonic()
            scrape(daemon, context)
            assert time.monotonic() - started < 2, "it waited until they were sent away"
            assert daemon.threads() == threads
            assert daemon.descriptors() <= descriptors + 128
    deadline = time.monotonic() + WAIT_SECONDS
    while daemon.descriptors() > descriptors:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_certificate_that_is_renewed(world: World, start: Start, certified: Certified) -> None:
    prepare(world, tls(certified))
    daemon = start()
    context = client_context(certified.authority)
    before = served_serial(address(daemon), context)
    new = issue(certified.authority, "renewed")
    certified.host.replace(new)
    deadline = time.monotonic() + WAIT_SECONDS
    while (serial := served_serial(address(daemon), context)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert serial == new.serial
    scrape(daemon, context)
    daemon.wait_log(f"certificate {certified.host.certificate} was read again")


def test_a_certificate_that_is_wrong_at_the_start(
    world: World, start: Start, certified: Certified
) -> None:
    """Maps are kept all the same, and metrics are served when it is put right."""
    prepare(world, tls(certified))
    good = certified.host.key.read_bytes()
    certified.host.key.write_bytes(certified.scraper.key.read_bytes())
    daemon = start(look_seconds=0.2)
    assert world.map_id() is not None
    fault = f"cannot use key {certified.host.key}: it does not belong to the first certificate"
    daemon.wait_log(f"no metrics are served: {fault}")
    done = cli(world, "check")
    assert done.returncode == 1 and f"\nmetrics: {fault}" in done.stdout

    certified.host.key.write_bytes(good)
    certified.host.key.chmod(0o644)
    daemon.wait_log("metrics are served at ")
    scrape(daemon, client_context(certified.authority))
    assert daemon.log.count("no metrics are served") == 1
    report = json.loads(cli(world, "check", "--json").stdout)
    assert report["metrics_fault"] == ""
    assert report["metrics_warning"].startswith("everybody on this machine can read the key: ")
    assert cli(world, "check").returncode == 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_restart_on_the_socket_of_the_service_manager(
    world: World, start: Start, certified: Certified, listener: socket.socket, secure: bool
) -> None:
    """No connection is refused: who comes in between is answered by the next daemon."""
    prepare(world, tls(certified) if secure else METRICS)
    context = client_context(certified.authority) if secure else None
    there = listener.getsockname()
    waiting: list[socket.socket] = []
    with ExitStack() as stack:
        for _ in range(2):
            daemon = start(sockets=[("bpfkeeperd-metrics", listener)])
            assert f"{there[0]}:{there[1]}/metrics (socket of the service manager)" in daemon.log
            for client in waiting:
                if context:
                    client = stack.enter_context(
                        context.wrap_socket(client, server_hostname="127.0.0.1")
                    )
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert client.recv(1) == b"H"
            scrape(daemon, context)
            assert daemon.stop() == 0
            client = stack.enter_context(socket.create_connection(there, timeout=30))
            waiting.append(client)


@pytest.mark.parametrize("listen", ["none", '"192.0.2.1:1"'])
def test_the_socket_of_the_service_manager_is_used_whatever_is_configured(
    world: World, start: Start, listener: socket.socket, listen: str
) -> None:
    prepare(world, f"metrics: {{listen: {listen}}}")
    daemon = start(sockets=[("bpfkeeperd-metrics", listener)])
    assert address(daemon) == listener.getsockname()
    scrape(daemon)


def test_a_socket_that_metrics_cannot_be_served_on(world: World, start: Start) -> None:
    prepare(world, METRICS)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind(("127.0.0.1", 0))
        daemon = start(sockets=[("bpfkeeperd-metrics", wrong)], look_seconds=0.2)
        daemon.wait_log("cannot serve metrics on the inherited socket: it is no listening TCP")
        assert world.map_id() is not None


def test_a_bad_certificate_does_not_lose_the_socket(
    world: World, start: Start, certified: Certified, listener: socket.socket
) -> None:
    prepare(world, tls(certified))
    good = certified.host.certificate.read_bytes()
    certified.host.certificate.write_text("")
    daemon = start(sockets=[("bpfkeeperd-metrics", listener)], look_seconds=0.2)
    daemon.wait_log("no metrics are served: cannot use certificate")
    certified.host.certificate.write_bytes(good)
    daemon.wait_log("(socket of the service manager)")
    scrape(daemon, client_context(certified.authority))
