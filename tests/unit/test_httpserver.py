"""The metrics endpoint under clients that behave, and under those that do not."""

import http.client
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bpfkeeperd
from bpfkeeperd import httpserver
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.httpserver import MetricsServer

BODY = b"# HELP one One.\none 1\n"


def render() -> tuple[bytes, str]:
    return BODY, "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer(("127.0.0.1", 0), render) as running:
        yield running


def ask(
    address: tuple[str, int], method: str = "GET", path: str = "/metrics", body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=5)
    try:
        connection.request(method, path, body=body)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def say(address: tuple[str, int], text: bytes) -> bytes:
    """All that the server says to these bytes."""
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(text)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


@contextmanager
def silent_clients(address: tuple[str, int], number: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(number)
        ]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_get(server: MetricsServer) -> None:
    response, body = ask(server.address)
    assert (response.status, body) == (200, BODY)
    assert response.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
    assert response.getheader("Content-Length") == str(len(BODY))
    assert response.getheader("Connection") == "close"


@pytest.mark.parametrize("path", ["/metrics", "/", "/nothing"])
def test_head_has_the_headers_of_get_and_no_body(server: MetricsServer, path: str) -> None:
    head, blank, body = say(
        server.address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    ).partition(b"\r\n\r\n")
    said = say(server.address, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def without_date(text: bytes) -> bytes:
        return re.sub(rb"\r\nDate: [^\r]*", b"", text)

    assert without_date(said) == without_date(head + blank)
    assert body and b"\r\nContent-Length: %d\r\n" % len(body) in head


def test_http_1_0_is_answered_the_same_way(server: MetricsServer) -> None:
    said = say(server.address, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK\r\n") and said.endswith(b"\r\n\r\n" + BODY)


def test_what_a_client_accepts_changes_nothing(server: MetricsServer) -> None:
    said = say(
        server.address,
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n"
        b"Accept-Encoding: gzip\r\n\r\n",
    )
    assert b"Content-Encoding" not in said and said.endswith(b"\r\n\r\n" + BODY)


def test_the_landing_page(server: MetricsServer) -> None:
    response, body = ask(server.address, path="/")
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    page = ElementTree.fromstring(body.decode())
    assert page.findtext(".//h1") == f"bpfkeeperd {bpfkeeperd.__version__}"
    # Nothing is fetched from elsewhere.
    links = [value for part in page.iter() for value in part.attrib.values()]
    assert links == ["en", "utf-8", "/metrics"]
    assert ask(server.address, path="/metrics")[1] == BODY


@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing"])
def test_browsers_are_told_to_take_it_for_what_it_is(server: MetricsServer, path: str) -> None:
    response, _ = ask(server.address, path=path)
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert "default-src 'none'" in (response.getheader("Content-Security-Policy") or "")
    assert response.getheader("Cache-Control") == "no-store"


def test_url(server: MetricsServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.address[1]}/metrics"
    with MetricsServer(("::1", 0), render) as other:
        assert other.url == f"http://[::1]:{other.address[1]}/metrics"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics?name=x", 200),
        ("GET", "/", 200),
        ("GET", "/?x=<script>", 200),
        ("GET", "/metrics/", 404),
        ("GET", "/../metrics", 404),
        ("GET", "//metrics", 404),
        ("HEAD", "/x", 404),
        ("POST", "/x", 404),
        ("POST", "/", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
        ("OPTIONS", "/metrics", 405),
    ],
)
def test_status(server: MetricsServer, method: str, path: str, status: int) -> None:
    response, _ = ask(server.address, method, path)
    assert response.status == status
    assert response.getheader("Allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /metrics",
        b"GET /metrics HTTP/2.0",
        b"GET  /metrics HTTP/1.1",
        b"\xff\0 x",
    ],
)
def test_garbage_is_a_bad_request(server: MetricsServer, line: bytes) -> None:
    assert say(server.address, line + b"\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert ask(server.address)[0].status == 200


def test_a_head_may_have_8_kib_and_no_more(server: MetricsServer) -> None:
    start, end = b"GET /metrics HTTP/1.1\r\nX: ", b"\r\n\r\n"
    fits = start + b"x" * (8192 - len(start) - len(end)) + end
    assert say(server.address, fits).startswith(b"HTTP/1.1 200 ")
    # Far more than the server reads: the answer must get through all the same.
    assert say(server.address, start + b"x" * 300_000).startswith(b"HTTP/1.1 431 ")


def test_the_answer_to_an_unread_body_gets_through(server: MetricsServer) -> None:
    assert ask(server.address, "POST", body=b"x" * 300_000)[0].status == 405


def test_a_request_in_pieces(server: MetricsServer) -> None:
    with socket.create_connection(server.address, timeout=5) as client:
        for piece in (b"GET /met", b"rics HTTP/1.1\r\n", b"Host: x\r\n\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.02)
        assert read_all(client).endswith(BODY)


def test_an_answer_larger_than_the_socket_buffers() -> None:
    large = b"x" * 20_000_000
    with MetricsServer(("127.0.0.1", 0), lambda: (large, "text/plain")) as server:
        assert ask(server.address)[1] == large


def test_render_fails_and_the_next_scrape_does_not(caplog: pytest.LogCaptureFixture) -> None:
    answers = iter([ValueError("a bug"), None])

    def failing_once() -> tuple[bytes, str]:
        if error := next(answers):
            raise error
        return render()

    with MetricsServer(("127.0.0.1", 0), failing_once) as server:
        response, body = ask(server.address)
        assert (response.status, body) == (500, b"500 Internal Server Error\n")
        assert "a bug" in caplog.text
        assert ask(server.address)[0].status == 200


def test_silent_clients_do_not_stop_scrapes(server: MetricsServer) -> None:
    before = threads()
    with silent_clients(server.address, 500):
        end = time.monotonic() + httpserver.REQUEST_SECONDS + 0.5
        while time.monotonic() < end:
            started = time.monotonic()
            assert ask(server.address)[1] == BODY
            assert time.monotonic() - started < httpserver.REQUEST_SECONDS, "it waited for them"
            assert threads() <= before
            time.sleep(0.02)


def test_silent_clients_that_come_again_do_not_stop_scrapes(server: MetricsServer) -> None:
    done = threading.Event()

    def come_again() -> None:
        while not done.is_set():
            with silent_clients(server.address, 50):
                done.wait(0.3)

    crowd = [threading.Thread(target=come_again) for _ in range(6)]
    for one in crowd:
        one.start()
    try:
        for _ in range(20):
            assert ask(server.address)[1] == BODY
            time.sleep(0.05)
    finally:
        done.set()
        for one in crowd:
            one.join()


def test_no_more_than_so_many_connections_are_held(server: MetricsServer) -> None:
    before = descriptors()
    with silent_clients(server.address, 300) as clients:
        wait_until(lambda: ask(server.address)[1] == BODY)
        assert descriptors() - before - len(clients) <= 128
    wait_until(lambda: descriptors() == before)


def test_a_scrape_that_takes_the_last_descriptor_is_answered(server: MetricsServer) -> None:
    """The kernel refuses to accept without a descriptor, also when there is nobody to accept."""
    with socket.socket() as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
        try:
            client.settimeout(5)
            client.connect(server.address)
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            answer = read_all(client)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answer.endswith(BODY)


def test_a_trickling_client_is_cut_off(server: MetricsServer) -> None:
    started = time.monotonic()
    with socket.create_connection(server.address, timeout=5) as client:
        with pytest.raises(OSError):
            for byte in b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1000:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        assert httpserver.REQUEST_SECONDS - 0.1 < time.monotonic() - started < 20


def test_a_client_that_does_not_take_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpserver, "ANSWER_SECONDS", 0.3)
    before = descriptors()
    with (
        MetricsServer(("127.0.0.1", 0), lambda: (b"x" * 20_000_000, "text/plain")) as server,
        socket.create_connection(server.address, timeout=5) as client,
    ):
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert client.recv(1) == b"H"
        holding = descriptors()
        wait_until(lambda: descriptors() == holding - 1)
        assert len(read_all(client)) < 20_000_000
    assert descriptors() == before


def test_a_client_that_never_closes_is_cut_off(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpserver, "REQUEST_SECONDS", 0.3)
    before = descriptors()
    with socket.create_connection(server.address, timeout=5) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert read_all(client).endswith(BODY)
        wait_until(lambda: descriptors() == before + 1)


def test_ipv6() -> None:
    with MetricsServer(("::1", 0), render) as server:
        assert server.address[0] == "::1"
        assert ask(server.address)[1] == BODY


def test_an_inherited_socket() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with MetricsServer(listener, render) as server:
        assert server.address == ("127.0.0.1", port)
        assert ask(server.address)[1] == BODY
    assert listener.fileno() == -1


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_INET, socket.SOCK_STREAM),  # not listening
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ],
)
def test_an_inherited_socket_of_another_kind(family: int, kind: int) -> None:
    with (
        socket.socket(family, kind) as wrong,
        pytest.raises(KeeperError, match="cannot serve metrics on the inherited socket: it is no"),
    ):
        MetricsServer(wrong, render)


def test_port_in_use(server: MetricsServer) -> None:
    host, port = server.address
    before = descriptors()
    with pytest.raises(KeeperError) as raised:
        MetricsServer((host, port), render)
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use: another process listens there"
        " (ss -ltnp names it): stop it, or choose another port in metrics.listen"
    )
    assert descriptors() == before


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:9435: Cannot assign requested address: no"),
        ("2001:db8::1", r"cannot listen on \[2001:db8::1\]:9435: Cannot assign requested address"),
        ("no such host", "cannot listen on no such host:9435: Name or service not known: write"),
        ("x" * 300, r"cannot listen on x+:9435: .+: write an address"),
    ],
)
def test_no_such_address(host: str, message: str) -> None:
    with pytest.raises(KeeperError, match=message):
        MetricsServer((host, 9435), render)


def test_close_frees_the_port_at_once() -> None:
    before = threads(), descriptors()
    server = MetricsServer(("127.0.0.1", 0), render)
    with silent_clients(server.address, 20):
        assert ask(server.address)[1] == BODY
        started = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - started < httpserver.REQUEST_SECONDS
        with pytest.raises(ConnectionRefusedError):
            ask(server.address)
        with MetricsServer(server.address, render) as again:
            assert ask(again.address)[1] == BODY
    # A thread that was joined is listed for a moment yet.
    wait_until(lambda: (threads(), descriptors()) == before)


def test_close_does_not_wait_for_ever_for_a_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpserver, "CLOSE_SECONDS", 0.2)
    rendering, go_on = threading.Event(), threading.Event()

    def slow() -> tuple[bytes, str]:
        rendering.set()
        go_on.wait(5)
        return render()

    server = MetricsServer(("127.0.0.1", 0), slow)
    with socket.create_connection(server.address, timeout=5) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert rendering.wait(5)
        started = time.monotonic()
        server.close()
        assert time.monotonic() - started < 4
        go_on.set()
        server.close()


def test_no_more_than_so_many_answers_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine the last of them has its turn late; none is to go for that.
    monkeypatch.setattr(httpserver, "REQUEST_SECONDS", 60.0)
    monkeypatch.setattr(httpserver, "ANSWER_SECONDS", 60.0)
    before = descriptors()
    with (
        MetricsServer(("127.0.0.1", 0), lambda: (b"x" * 20_000_000, "text/plain")) as server,
        silent_clients(server.address, 20) as clients,
    ):
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert client.recv(1) == b"H"
        quiet = before + 4 + len(clients)  # listener, selector, the two to close with, and theirs
        assert descriptors() - quiet <= 16
        assert len(read_all(clients[-1])) > 20_000_000


def test_an_idle_server_sleeps(server: MetricsServer) -> None:
    (thread,) = (one for one in threading.enumerate() if one.name == "metrics")

    def switches() -> str:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        return status.split("\nvoluntary_ctxt_switches:")[1].split()[0]

    assert ask(server.address)[0].status == 200
    wait_until(
        lambda: "(sleeping)" in Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    )
    time.sleep(0.1)
    before = switches()
    time.sleep(0.5)
    assert switches() == before
