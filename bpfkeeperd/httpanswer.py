"""What the metrics endpoint answers: from the head of a request to the bytes that are sent.

Answers are not compressed, whatever a client accepts: scrapers are on this machine or near, and a
megabyte of metrics costs some ten milliseconds of CPU to compress, more than to make.
"""

import html
import logging
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from bpfkeeperd import __version__

log = logging.getLogger(__name__)

Render = Callable[[], tuple[bytes, str]]
"""Gives the text of a scrape, and its content type."""

_TEXT = "text/plain; charset=utf-8"
_LANDING_PAGE = f"""\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"/><title>bpfkeeperd</title></head>
<body>
<h1>bpfkeeperd {html.escape(__version__)}</h1>
<p>Keeps eBPF maps pinned by name while the programs around them are reloaded.</p>
<p><a href="/metrics">Metrics</a>, for Prometheus: how full each map is, which map IDs changed and
why, what is attached.</p>
</body>
</html>
""".encode()


def answer(head: bytes, render: Render) -> bytes:
    """The answer to a request, of which the head is enough; ``render`` may raise what it likes."""
    words = head.partition(b"\r\n")[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return response(HTTPStatus.BAD_REQUEST)
    method, target, _ = words
    with_body = method != b"HEAD"
    path = target.partition(b"?")[0]
    if path not in (b"/", b"/metrics"):
        return response(HTTPStatus.NOT_FOUND, with_body=with_body)
    if method not in (b"GET", b"HEAD"):
        return response(HTTPStatus.METHOD_NOT_ALLOWED)
    if path == b"/":
        return response(
            HTTPStatus.OK, _LANDING_PAGE, "text/html; charset=utf-8", with_body=with_body
        )
    try:
        body, content_type = render()
    except Exception:
        log.exception("cannot render the metrics")
        return response(HTTPStatus.INTERNAL_SERVER_ERROR, with_body=with_body)
    return response(HTTPStatus.OK, body, content_type, with_body=with_body)


def response(
    status: HTTPStatus,
    body: bytes | None = None,
    content_type: str = _TEXT,
    *,
    with_body: bool = True,
) -> bytes:
    """Without a body of its own, an answer says its status."""
    if body is None:
        body = f"{status.value} {status.phrase}\n".encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'",
    ]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head + body if with_body else head
