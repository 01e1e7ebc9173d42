"""What every request passes first: its origin, size and rate; what every answer carries."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LARGEST_BODY_MIB = 4
_LARGEST_FILE_MIB = 64  # of tasks
_MOST_CLIENTS = 10_000
TASKS_FILE = "/admin/tasks"  # where the administrator sends a file of tasks
_Next = Callable[[Request], Awaitable[Response]]


class RateLimit:
    """So many requests a minute for each client, in bursts of as many.

    Attributes:
        per_minute: how many.
    """

    def __init__(self, per_minute: int) -> None:
        """Begin with full buckets."""
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count one request.

        Raises:
            HTTPException: 429, the client has to wait.
        """
        now = time.monotonic()
        left, since = self._left.pop(client, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * self.per_minute / 60)
        self._left[client] = (max(0.0, left - 1), now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            raise HTTPException(429, "too many requests; wait a minute", {"Retry-After": "60"})


async def guard(request: Request, call_next: _Next) -> Response:
    """Refuse what another site sends and what is too large; add the headers of security."""
    request.state.nonce = secrets.token_urlsafe(16)
    refused = _refusal(request)
    response = await call_next(request) if refused is None else refused
    nonce = f"'nonce-{request.state.nonce}'"
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {nonce}; style-src {nonce}; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _refusal(request: Request) -> JSONResponse | None:
    if request.method in _SAFE_METHODS:
        return None
    has_token = request.headers.get("authorization", "").lower().startswith("bearer ")
    if not has_token and not _is_same_origin(request):
        return JSONResponse({"detail": "this request came from another site"}, 403)
    size = request.headers.get("content-length", "")
    if not size.isdecimal():
        return JSONResponse({"detail": "the request needs a Content-Length"}, 411)
    largest = _LARGEST_FILE_MIB if request.url.path == TASKS_FILE else _LARGEST_BODY_MIB
    if int(size) > largest * 2**20:
        message = f"a request has at most {largest} MiB here; send it in parts"
        return JSONResponse({"detail": message}, 413)
    return None


def _is_same_origin(request: Request) -> bool:
    """Say whether a page of this server sent the request.

    Browsers say so in `Sec-Fetch-Site`, but only over https and on localhost; elsewhere `Origin`
    names the page's host. A cookie alone is no proof: browsers send it along for other sites, too.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin", "")
    return origin.partition("://")[2] == request.headers.get("host", "")
