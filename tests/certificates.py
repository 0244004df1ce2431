"""Certificates of a test's own, made by openssl."""

import os
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both in PEM form."""

    certificate: Path
    key: Path

    def replace(self, other: "Pair") -> None:
        """Puts another pair in the place of this one, as a renewal does."""
        for ours, theirs in ((self.certificate, other.certificate), (self.key, other.key)):
            new = ours.with_name(f"{ours.name}.new")
            new.write_bytes(theirs.read_bytes())
            os.replace(new, ours)

    @property
    def serial(self) -> int:
        """What tells one certificate from another."""
        text = subprocess.run(
            ["openssl", "x509", "-in", self.certificate, "-noout", "-serial"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return int(text.strip().removeprefix("serial="), 16)


def make_authority(directory: Path, name: str) -> Pair:
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", pair.key, "-out", pair.certificate, "-subj", f"/CN={name}", "-days", 2),
        *("-addext", "keyUsage=critical,keyCertSign"),
    )
    return pair


def issue(authority: Pair, name: str, *, new_key: str = "ec") -> Pair:
    """A certificate for 127.0.0.1, beside its authority's; ``new_key``: ec, or rsa:BITS."""
    directory = authority.certificate.parent
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    request = directory / f"{name}.csr"
    curve = ("-pkeyopt", "ec_paramgen_curve:prime256v1") if new_key == "ec" else ()
    openssl(
        *("req", "-newkey", new_key, *curve, "-nodes", "-keyout", pair.key, "-out", request),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
    )
    openssl(
        *("x509", "-req", "-in", request, "-CA", authority.certificate, "-CAkey", authority.key),
        *("-CAcreateserial", "-copy_extensions", "copy", "-days", 2, "-out", pair.certificate),
    )
    return pair


def client_context(authority: Pair, own: Pair | None = None) -> ssl.SSLContext:
    """A scraper that trusts the authority, and shows a certificate of its own."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context


def served_serial(address: tuple[str, int], context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a server shows."""
    import socket

    with (
        socket.create_connection(address, timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        shown = secured.getpeercert()
    assert shown
    return int(str(shown["serialNumber"]), 16)
