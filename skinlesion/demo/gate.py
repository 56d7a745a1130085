"""Which requests are answered: the documented endpoints, and only so many of a client a minute."""

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from skinlesion.demo.uploads import MAX_FILES

ENDPOINTS = ("predict", "explain", "predict_many", "describe")
"""What other programs may call by name. docs/demo.md describes them."""
LIMITS = {"login": 5, "ask": 60, "upload": MAX_FILES}
"""Logins (right or wrong), questions and uploads of a client in a minute."""
MINUTE = 60.0
LOOPBACK = ("127.0.0.1", "::1")
"""Addresses of this machine itself, whose questions and uploads are not limited."""

_CALL = re.compile(r"/(?P<way>call/v2|call|run|api)/(?P<name>[^/]+)/?$")


def guard(*, is_private: bool) -> dict[str, Any]:
    """Return the options of FastAPI that put a `Gate` in front of the page.

    Args:
        is_private: whether only this machine can reach the page. Otherwise its own address is
            limited too, because visitors can claim it.
    """
    return {
        "middleware": [Middleware(Gate, unlimited=LOOPBACK if is_private else ())],
        "exception_handlers": {KeyError: _answer_unknown},
    }


class Gate:
    """ASGI middleware that refuses other endpoints (404) and too many requests (429).

    Gradio answers calls of handlers that it lists as private. A client is an address. If a request
    comes from a proxy that uvicorn trusts (`FORWARDED_ALLOW_IPS`), it is the last address in
    `X-Forwarded-For` that is not such a proxy: those before it can be invented.

    Args:
        app: what answers the other requests.
        unlimited: clients whose questions and uploads are not counted.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        unlimited: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app, self.unlimited, self.clock = app, unlimited, clock
        self.recent: dict[tuple[str, str], deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        await (self._refuse(scope) or self.app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path = scope["path"].rstrip("/")
        called = _CALL.search(path)
        # `run` and `api` bypass the queue.
        if called and (called["way"] in ("run", "api") or called["name"] not in ENDPOINTS):
            known = ", ".join(ENDPOINTS)
            return JSONResponse({"detail": f"no such endpoint; call one of {known}"}, 404)
        last = path.rpartition("/")[2]
        kind = "ask" if called or last == "join" else last
        client = scope["client"][0] if scope["client"] else ""
        if kind not in LIMITS or (kind != "login" and client in self.unlimited):
            return None
        if self._is_too_much(kind, client):
            detail = f"more than {LIMITS[kind]} requests in a minute; wait, then try again"
            return JSONResponse({"detail": detail}, 429, {"Retry-After": f"{MINUTE:.0f}"})
        return None

    def _is_too_much(self, kind: str, client: str) -> bool:
        now = self.clock()
        # Clients that have been quiet for a minute are forgotten.
        self.recent = {key: at for key, at in self.recent.items() if at[-1] > now - MINUTE}
        times = self.recent.setdefault((kind, client), deque(maxlen=LIMITS[kind]))
        if len(times) == times.maxlen and times[0] > now - MINUTE:
            return True
        times.append(now)
        return False


async def _answer_unknown(request: Request, error: Exception) -> JSONResponse:
    """Gradio raises KeyError with the number of a handler that it does not have."""
    if request.url.path.endswith("/queue/join") and isinstance(error.args[0], int):
        return JSONResponse({"detail": "no such handler"}, 404)
    raise error
