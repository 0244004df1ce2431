"""TLS for the endpoint: certificates read from files, and again when those change; connections
secured with them.

Only who has TLS in the manifest imports this module: it brings ssl with it.
"""

import logging
import os
import selectors
import socket
import ssl
import stat
import time

from bpfkeeperd.entries import TlsEntry
from bpfkeeperd.errors import KeeperError
from bpfkeeperd.files import read_file

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often, at most, the files are looked at for another certificate."""
FILE_MAX_BYTES = 1 << 20
_SESSIONS_MAX = 1000

_Seen = tuple[tuple[int, int, int, int] | None, ...]


class Certificates:
    """What connections are secured with. Others renew certificates: the files are watched, and a
    pair that cannot be used leaves the one that was read before in place.

    Raises:
        KeeperError: the files cannot be used: which, why, what to do.
    """

    def __init__(self, tls: TlsEntry) -> None:
        self._tls = tls
        self._seen = _look(tls)
        self._context = load_context(tls)
        self._looked = time.monotonic()
        self._failed: _Seen | None = None
        self._told = False

    def context(self) -> ssl.SSLContext:
        """As the files are now, or were a second ago; never raises."""
        now = time.monotonic()
        if now >= self._looked + LOOK_SECONDS:
            self._looked = now
            self._read_again()
        return self._context

    def secure(self, plain: socket.socket) -> "SecureSocket":
        """A connection that was accepted, from then on the secure socket's.

        Raises:
            OSError: the client is gone.
        """
        return SecureSocket(
            self.context().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        )

    def _read_again(self) -> None:
        seen = _look(self._tls)
        # OpenSSL keeps up to 20,000 sessions of TLS 1.2 clients that take no tickets, and Python
        # cannot tell it not to: now and then it begins afresh.
        is_full = self._context.session_stats()["number"] > _SESSIONS_MAX
        if (seen == self._seen and not is_full) or (self._told and seen == self._failed):
            return
        try:
            self._context = load_context(self._tls)
        except KeeperError as error:
            # Certificate and key are written one after the other: what is wrong stays wrong.
            if seen == self._failed:
                self._told = True
                log.error("metrics are served with the certificate read before: %s", error)
            else:
                self._failed, self._told = seen, False
            return
        if seen != self._seen:
            log.info("certificate %s was read again", self._tls.certificate)
        self._seen, self._failed, self._told = seen, None, False


class SecureSocket:
    """TLS on a socket that does not block. What cannot be done yet is an OSError of which `awaited`
    knows what to wait for; other OSErrors are the end of the connection."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self.socket = secured

    @staticmethod
    def awaited(error: OSError) -> int | None:
        """The event of a selector with which to try again; None: there is no use in that."""
        match error:
            case ssl.SSLWantReadError():
                return selectors.EVENT_READ
            case ssl.SSLWantWriteError():
                return selectors.EVENT_WRITE
            case _:
                return None

    def shake_hands(self) -> bool:
        """False: the client was told why not, as far as it understands."""
        try:
            self.socket.do_handshake()
        except OSError as error:
            if self.awaited(error) is not None:
                raise
            return False
        return True

    def say_goodbye(self) -> None:
        """Tells that nothing was cut off (close_notify); the client's own is not waited for."""
        try:
            self.socket.unwrap()
        except ssl.SSLWantWriteError:
            raise
        except ssl.SSLError:
            return


def load_context(tls: TlsEntry) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or later, and client certificates where the manifest has a CA.

    Raises:
        KeeperError: as `Certificates` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A scrape is one connection, and scrapers do not resume: tickets would be sent for nothing.
    context.num_tickets = 0
    _check_certificates(tls.certificate, "certificate")
    _check_readable(tls.key, "key")
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise KeeperError(_pair_fault(tls, error)) from None
    if tls.client_ca is not None:
        _check_certificates(tls.client_ca, "client_ca", context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def judge(tls: TlsEntry) -> tuple[str, str]:
    """What is wrong with the files, as `load_context` says it, and what is only worth telling.

    That somebody else than root cannot read a key is how it should be, and no mistake.
    """
    secret = next((path for path in _paths(tls) if _is_forbidden(path)), "")
    if secret:
        return "", f"cannot tell whether {secret} can be used: Permission denied: check as root"
    try:
        load_context(tls)
    except KeeperError as error:
        return str(error), ""
    if os.stat(tls.key).st_mode & stat.S_IROTH:
        return "", f"everybody on this machine can read the key: chmod o-r {tls.key}"
    return "", ""


def _paths(tls: TlsEntry) -> tuple[str, ...]:
    return tuple(path for path in (tls.certificate, tls.key, tls.client_ca) if path)


def _is_forbidden(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _check_readable(path: str, field: str) -> None:
    try:
        read_file(path, FILE_MAX_BYTES, f"{_NOUNS[field]} ")
    except KeeperError as error:
        raise KeeperError(f"{error}: put it there, or correct metrics.tls.{field}") from None


def _check_certificates(path: str, field: str, context: ssl.SSLContext | None = None) -> None:
    """Whether a file holds certificates, and takes them for those of authorities in a context."""
    _check_readable(path, field)
    try:
        (context or ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)).load_verify_locations(path)
    except OSError as error:
        raise KeeperError(
            f"cannot use {_NOUNS[field]} {path}: it holds no certificate in PEM form, or a damaged"
            f" one{_reason(error)}: write a PEM file into metrics.tls.{field}"
        ) from None


def _pair_fault(tls: TlsEntry, error: OSError | ValueError) -> str:
    match error:
        case ssl.SSLError(reason="KEY_VALUES_MISMATCH" | "NO_CERTIFICATE_ASSIGNED"):
            return (
                f"cannot use key {tls.key}: it does not belong to the first certificate in"
                f" {tls.certificate}: write the file of its own key into metrics.tls.key"
            )
        case ssl.SSLError(reason="EE_KEY_TOO_SMALL" | "CA_KEY_TOO_SMALL" | "CA_MD_TOO_WEAK"):
            return (
                f"cannot use certificate {tls.certificate}: OpenSSL takes it for too weak"
                f"{_reason(error)}: have one made with a longer key"
            )
        case ValueError():
            return (
                f"cannot use key {tls.key}: it is encrypted: openssl pkey -in {tls.key} -out FILE"
                " writes it without a password"
            )
        case _:
            return (
                f"cannot use key {tls.key}: it holds no private key in PEM form, or a damaged"
                f" one{_reason(error)}: write its file into metrics.tls.key"
            )


_NOUNS = {"certificate": "certificate", "key": "key", "client_ca": "client CA"}


def _no_password() -> str:
    """In the place of OpenSSL's own question, which would wait at the terminal for an answer."""
    raise ValueError("encrypted")


def _reason(error: OSError) -> str:
    """OpenSSL's word for it, where it has one."""
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return f" ({reason.lower().replace('_', ' ')})" if reason else ""


def _look(tls: TlsEntry) -> _Seen:
    return tuple(_identity(path) for path in _paths(tls))


def _identity(path: str) -> tuple[int, int, int, int] | None:
    """What another file, or another text in it, has another of; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
