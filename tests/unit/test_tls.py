"""TLS at the metrics endpoint: clients that behave and those that do not, certificates that are
renewed, and files that cannot be used."""

import http.client
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from bpfkeeperd import httpserver, tlsfiles
from bpfkeeperd.entries import TlsEntry
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.httpserver import MetricsServer
from bpfkeeperd.tlsfiles import Certificates, judge, load_context
from tests.certificates import (
    Pair,
    client_context,
    issue,
    make_authority,
    openssl,
    served_serial,
)

BODY = b"# HELP one One.\none 1\n"
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def render() -> tuple[bytes, str]:
    return BODY, "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def host(authority: Pair) -> Pair:
    return issue(authority, "host")


@pytest.fixture(scope="module")
def scraper(authority: Pair) -> Pair:
    return issue(authority, "scraper")


def entry(host: Pair, client_ca: Pair | None = None) -> TlsEntry:
    return TlsEntry(
        str(host.certificate), str(host.key), str(client_ca.certificate) if client_ca else None
    )


@contextmanager
def serving(tls: TlsEntry, body: bytes = BODY) -> Iterator[MetricsServer]:
    with MetricsServer(
        ("127.0.0.1", 0), lambda: (body, "text/plain"), Certificates(tls)
    ) as running:
        yield running


@pytest.fixture
def server(host: Pair) -> Iterator[MetricsServer]:
    with serving(entry(host)) as running:
        yield running


@pytest.fixture
def strict(host: Pair, authority: Pair) -> Iterator[MetricsServer]:
    """Wants certificates of its clients."""
    with serving(entry(host, authority)) as running:
        yield running


def ask(server: MetricsServer, context: ssl.SSLContext, path: str = "/metrics") -> bytes:
    connection = http.client.HTTPSConnection(*server.address, context=context, timeout=5)
    with closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def read_all(client: socket.socket) -> bytes:
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


@contextmanager
def secured(server: MetricsServer, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A client to whom an end that is not told (close_notify) is an SSLEOFError."""
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    with (
        socket.create_connection(server.address, timeout=5) as plain,
        context.wrap_socket(
            plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
        ) as client,
    ):
        yield client


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_get(server: MetricsServer, authority: Pair, path: str) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    body = ask(server, client_context(authority), path)
    assert body == BODY if path == "/metrics" else b"<h1>bpfkeeperd" in body


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(server: MetricsServer, authority: Pair, version: ssl.TLSVersion) -> None:
    context = client_context(authority)
    context.minimum_version = context.maximum_version = version
    with secured(server, context) as client:
        assert client.version() == version.name.replace("_", ".")
        client.sendall(REQUEST)
        assert read_all(client).endswith(BODY)


def test_older_versions_are_refused(server: MetricsServer, authority: Pair) -> None:
    context = client_context(authority)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"), secured(server, context):
        pass
    assert ask(server, client_context(authority)) == BODY


def test_no_ticket_is_sent(server: MetricsServer, authority: Pair) -> None:
    with secured(server, client_context(authority)) as client:
        client.sendall(REQUEST)
        assert read_all(client)
        assert client.session is None or not client.session.has_ticket


def test_renegotiation_is_refused(server: MetricsServer, authority: Pair) -> None:
    host, port = server.address
    done = subprocess.run(
        ["openssl", "s_client", "-tls1_2", "-connect", f"{host}:{port}"],
        input=b"R\n",
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr
    assert ask(server, client_context(authority)) == BODY


def test_a_request_in_pieces(server: MetricsServer, authority: Pair) -> None:
    with secured(server, client_context(authority)) as client:
        for piece in (b"GET /met", b"rics HTTP/1.1\r\n", b"Host: x\r\n\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.02)
        assert read_all(client).endswith(BODY)


def test_records_that_arrive_together(server: MetricsServer, authority: Pair) -> None:
    """What OpenSSL has read already is no news for a selector."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(server.address, timeout=5) as plain:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        for byte in REQUEST:
            client.write(bytes([byte]))
        plain.sendall(outgoing.read())  # the end of the handshake and all records in one segment
        incoming.write(read_all(plain))
        assert client.read(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("size", [8192, 8194, 300_000])
def test_a_head_may_have_8_kib_and_no_more(
    server: MetricsServer, authority: Pair, size: int
) -> None:
    start, end = REQUEST[:-4] + b"\r\nX: ", b"\r\n\r\n"
    with secured(server, client_context(authority)) as client:
        client.sendall(start + b"x" * (size - len(start) - len(end)) + end)
        status = read_all(client)[:13]
    assert status == (b"HTTP/1.1 200 " if size == 8192 else b"HTTP/1.1 431 ")


def test_an_answer_larger_than_the_socket_buffers(host: Pair, authority: Pair) -> None:
    large = os.urandom(1 << 20) * 20
    with serving(entry(host), large) as server:
        assert ask(server, client_context(authority)) == large


def test_a_client_that_is_slow_to_take_its_answer(host: Pair, authority: Pair) -> None:
    large = os.urandom(1 << 20) * 8
    with serving(entry(host), large) as server, secured(server, client_context(authority)) as one:
        one.sendall(REQUEST)
        assert ask(server, client_context(authority)) == large
        time.sleep(0.2)
        assert read_all(one).endswith(large)


def test_a_record_that_does_not_fit_into_the_socket_buffer(host: Pair, authority: Pair) -> None:
    """Then OpenSSL has to be asked again, with the same data."""
    large = os.urandom(1 << 17)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted ones inherit it
    certificates = Certificates(entry(host))
    with (
        MetricsServer(listener, lambda: (large, "text/plain"), certificates) as server,
        secured(server, client_context(authority)) as client,
    ):
        client.sendall(REQUEST)
        time.sleep(0.1)
        assert read_all(client).endswith(large)


def test_half_of_a_handshake(server: MetricsServer, authority: Pair) -> None:
    """In pieces, each of which is not enough."""
    hello = client_hello(client_context(authority))
    before = descriptors()
    with ExitStack() as stack:
        for length in (1, 5, 6, len(hello) - 1, len(hello)):
            client = stack.enter_context(socket.create_connection(server.address, timeout=5))
            client.sendall(hello[:length])
        started = time.monotonic()
        assert ask(server, client_context(authority)) == BODY
        assert time.monotonic() - started < httpserver.REQUEST_SECONDS
        # The same deadline as for a request: then they are sent away.
        wait_until(lambda: descriptors() == before + 5)


def test_silent_clients_do_not_stop_scrapes(server: MetricsServer, authority: Pair) -> None:
    context = client_context(authority)
    hello = client_hello(context)
    before, threads = descriptors(), threading.active_count()
    with ExitStack() as stack:
        for number in range(500):
            client = stack.enter_context(socket.create_connection(server.address, timeout=5))
            if number % 2:
                client.sendall(hello)
        end = time.monotonic() + httpserver.REQUEST_SECONDS + 0.5
        while time.monotonic() < end:
            started = time.monotonic()
            assert ask(server, context) == BODY
            assert time.monotonic() - started < httpserver.REQUEST_SECONDS, "it waited for them"
            assert descriptors() - before - 500 <= httpserver.CONNECTIONS
            assert threading.active_count() == threads
            time.sleep(0.02)
    wait_until(lambda: descriptors() == before)


def test_plain_http_is_told_what_is_spoken(server: MetricsServer, authority: Pair) -> None:
    with socket.create_connection(server.address, timeout=5) as client:
        client.sendall(REQUEST)
        said = read_all(client)
    assert said.startswith(b"HTTP/1.1 400 ") and said.endswith(b"write https://\n")
    assert BODY not in said
    assert ask(server, client_context(authority)) == BODY


@pytest.mark.parametrize("said", [b"\x16", b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"\x80\x2e\1"])
def test_garbage(server: MetricsServer, authority: Pair, said: bytes) -> None:
    with socket.create_connection(server.address, timeout=5) as client:
        try:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            assert BODY not in read_all(client)
        except ConnectionResetError:
            pass
    assert ask(server, client_context(authority)) == BODY


def test_clients_that_are_gone_at_once(server: MetricsServer, authority: Pair) -> None:
    before = descriptors()
    hello = client_hello(client_context(authority))
    for number in range(200):
        with socket.create_connection(server.address, timeout=5) as client:
            reset = struct.pack("=ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            client.sendall(hello[: 1 + number % len(hello)])
    assert ask(server, client_context(authority)) == BODY
    wait_until(lambda: descriptors() == before)


def test_tls_spoken_to_a_plain_port(authority: Pair) -> None:
    with MetricsServer(("127.0.0.1", 0), render) as server:
        with socket.create_connection(server.address, timeout=5) as client:
            client.sendall(client_hello(client_context(authority)))
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        assert server.url.startswith("http://")


def test_a_client_with_a_certificate(strict: MetricsServer, authority: Pair, scraper: Pair) -> None:
    assert ask(strict, client_context(authority, scraper)) == BODY


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("whose", ["nobody", "another authority"])
def test_a_client_without_a_right_certificate(
    strict: MetricsServer,
    authority: Pair,
    scraper: Pair,
    tmp_path: Path,
    whose: str,
    version: ssl.TLSVersion,
) -> None:
    own = None if whose == "nobody" else issue(make_authority(tmp_path, "other"), "stranger")
    context = client_context(authority, own)
    context.minimum_version = context.maximum_version = version
    # What is wrong is told, not just that the connection is gone; TLS 1.3 tells it late.
    expected = "UNKNOWN_CA" if own else "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"
    with (
        pytest.raises(ssl.SSLError, match=expected) as raised,
        secured(strict, context) as client,
    ):
        client.sendall(REQUEST)
        read_all(client)
    assert BODY.decode() not in str(raised.value)
    assert ask(strict, client_context(authority, scraper)) == BODY


def test_plain_http_does_not_get_around_client_certificates(strict: MetricsServer) -> None:
    with socket.create_connection(strict.address, timeout=5) as client:
        client.sendall(REQUEST)
        assert BODY not in read_all(client)


def test_sessions_of_old_clients_do_not_pile_up(
    host: Pair, authority: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlsfiles, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(tlsfiles, "_SESSIONS_MAX", 20)
    certificates = Certificates(entry(host))
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    with MetricsServer(("127.0.0.1", 0), render, certificates) as server:
        for _ in range(50):
            assert ask(server, context) == BODY
            assert certificates.context().session_stats()["number"] <= 21


@pytest.fixture
def renewable(authority: Pair, tmp_path: Path) -> Pair:
    first = issue(authority, "renewable-1")
    pair = Pair(tmp_path / "host.pem", tmp_path / "host.key")
    pair.replace(first)
    return pair


def test_a_renewed_certificate_is_served(
    authority: Pair,
    renewable: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(tlsfiles, "LOOK_SECONDS", 0.0)
    context = client_context(authority)
    with serving(entry(renewable)) as server:
        before = served_serial(server.address, context)
        new = issue(authority, "renewable-2")
        renewable.replace(new)
        assert served_serial(server.address, context) == new.serial != before
        assert caplog.text.count("was read again") == 1
        assert served_serial(server.address, context) == new.serial
        assert caplog.text.count("was read again") == 1


def test_files_are_looked_at_once_a_second(
    authority: Pair, renewable: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlsfiles, "LOOK_SECONDS", 100.0)
    with serving(entry(renewable)) as server:
        context = client_context(authority)
        before = served_serial(server.address, context)
        renewable.replace(issue(authority, "renewable-2"))
        assert served_serial(server.address, context) == before


def test_a_new_pair_that_cannot_be_used_is_told_once(
    authority: Pair,
    renewable: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tlsfiles, "LOOK_SECONDS", 0.0)
    context = client_context(authority)
    with serving(entry(renewable)) as server:
        before = served_serial(server.address, context)
        new = issue(authority, "renewable-2")
        renewable.certificate.write_bytes(new.certificate.read_bytes())
        assert served_serial(server.address, context) == before
        assert caplog.text == "", "the key may follow in a moment"
        for _ in range(3):
            assert served_serial(server.address, context) == before
        assert caplog.text.count("metrics are served with the certificate read before") == 1
        assert "it does not belong to the first certificate" in caplog.text
        renewable.key.unlink()
        for _ in range(3):
            assert served_serial(server.address, context) == before
        assert caplog.text.count("No such file or directory") == 1
        renewable.replace(new)
        assert served_serial(server.address, context) == new.serial


def test_a_half_written_pair_is_no_error(
    authority: Pair,
    renewable: Pair,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tlsfiles, "LOOK_SECONDS", 0.0)
    context = client_context(authority)
    with serving(entry(renewable)) as server:
        new = issue(authority, "renewable-2")
        renewable.certificate.write_bytes(new.certificate.read_bytes())
        assert served_serial(server.address, context) != new.serial
        renewable.key.write_bytes(new.key.read_bytes())
        assert served_serial(server.address, context) == new.serial
    assert caplog.text == ""


def fault(certificate: Path, key: Path, client_ca: Path | None = None) -> str:
    before = descriptors()
    with pytest.raises(KeeperError) as raised:
        load_context(TlsEntry(str(certificate), str(key), str(client_ca) if client_ca else None))
    assert descriptors() == before
    return str(raised.value)


def test_files_that_are_not_there(host: Pair, tmp_path: Path) -> None:
    none = tmp_path / "none"
    for files, noun, field in (
        ((none, host.key), "certificate", "certificate"),
        ((host.certificate, none), "key", "key"),
        ((host.certificate, host.key, none), "client CA", "client_ca"),
    ):
        assert fault(*files) == (
            f"cannot read {noun} {none}: No such file or directory: put it there, or correct"
            f" metrics.tls.{field}"
        )


@pytest.mark.parametrize("content", ["", "hello\n", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_files_of_another_kind(host: Pair, tmp_path: Path, content: str) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text(content)
    assert fault(wrong, host.key).startswith(
        f"cannot use certificate {wrong}: it holds no certificate in PEM form, or a damaged one"
    )
    assert fault(host.certificate, wrong).startswith(
        f"cannot use key {wrong}: it holds no private key in PEM form, or a damaged one"
    )
    assert fault(host.certificate, host.key, wrong).endswith(
        ": write a PEM file into metrics.tls.client_ca"
    )


def test_a_key_of_another_certificate(host: Pair, scraper: Pair, authority: Pair) -> None:
    rsa = issue(authority, "rsa", new_key="rsa:2048")
    for key in (scraper.key, rsa.key):
        assert fault(host.certificate, key) == (
            f"cannot use key {key}: it does not belong to the first certificate in"
            f" {host.certificate}: write the file of its own key into metrics.tls.key"
        )


def test_an_encrypted_key_does_not_wait_for_its_password(host: Pair, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", host.key, "-aes128", "-passout", "pass:secret", "-out", encrypted)
    assert f"cannot use key {encrypted}: it is encrypted: openssl pkey" in fault(
        host.certificate, encrypted
    )


def test_a_weak_key(authority: Pair) -> None:
    weak = issue(authority, "weak", new_key="rsa:1024")
    assert "OpenSSL takes it for too weak (ee key too small)" in fault(weak.certificate, weak.key)


def test_one_file_for_both(host: Pair, authority: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(host.key.read_bytes() + host.certificate.read_bytes())
    with serving(TlsEntry(str(both), str(both))) as server:
        assert ask(server, client_context(authority)) == BODY


def test_a_key_that_everybody_can_read_is_told(host: Pair, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a.pem", tmp_path / "a.key")
    pair.replace(host)
    pair.key.chmod(0o640)
    assert judge(entry(pair)) == ("", "")
    pair.key.chmod(0o644)
    assert judge(entry(pair)) == (
        "",
        f"everybody on this machine can read the key: chmod o-r {pair.key}",
    )
    pair.key.unlink()
    assert judge(entry(pair))[0].startswith(f"cannot read key {pair.key}: No such file")


@pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")
def test_a_key_that_is_for_others_is_no_mistake(host: Pair, tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a.pem", tmp_path / "a.key")
    pair.replace(host)
    pair.key.chmod(0o600)
    tmp_path.chmod(0o755)
    process = os.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.setuid(65534)
        found = judge(TlsEntry("a.pem", "a.key"))
        os._exit(0 if not found[0] and found[1].startswith("cannot tell whether a.key") else 1)
    assert os.waitpid(process, 0)[1] == 0


def test_nobody_loads_tls_who_does_not_want_it() -> None:
    """Nothing of the endpoint's own brings ssl with it."""
    code = "import sys, bpfkeeperd.httpserver; print('ssl' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
