"""What of the server a visitor can reach: the page, its queue, and pictures that this visitor uploaded; no more.

Gradio offers far more than the studio uses (files by their path, a proxy to other servers, an interface for programs,
recordings, editors).  The gate stands before it and lets through what the page needs.  Uploads are answered here, so
that no path of this machine is ever sent out, and none that comes in is followed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.responses import JSONResponse as Json

from bld.errors import DataError
from bld.studio.uploads import Uploads

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

API = "/gradio_api"
PAGE = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
PAGE_FOLDERS = ("/assets/", "/static/", "/svelte/")
QUEUE = {f"{API}/queue/data", f"{API}/startup-events", f"{API}/theme.css", f"{API}/app_id"}
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MOST_JOIN_BYTES = 8 * 2**20
DECODED_AT_ONCE = 2

POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "frame-ancestors": "'none'",
    "form-action": "'none'",
    "base-uri": "'self'",
}  # the page asks nobody else for anything, whatever is written into it
HEADERS = [
    (b"content-security-policy", "; ".join(f"{name} {value}" for name, value in POLICY.items()).encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True)
class Line:
    """Who waits for the model.

    Attributes:
        most: how many may wait.
        waiting: counts how many do.
        urgent: numbers of the events that need not wait, such as a stop.
    """

    most: int
    waiting: Callable[[], int]
    urgent: frozenset[int]


class Gate:
    """An ASGI application before another one.

    Args:
        app: the other one, which gets what is let through.
        uploads: keeps the pictures that visitors send.
        line: the queue, and how many may wait in it.
        hosts: names under which a browser may have asked for the page, None for any. With the loopback names no other
            web site can reach the studio through the visitor's browser.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        uploads: Uploads,
        line: Line,
        hosts: frozenset[str] | None = LOOPBACK,
    ):
        self.app, self.uploads, self.line, self.hosts = app, uploads, line, hosts
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer here, hand on, or refuse."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        response = await self._answer(Request(scope, receive))
        if isinstance(response, Response):
            await response(scope, receive, _with_headers(send))
        else:
            await self.app(scope, response or receive, _with_headers(send))

    async def _answer(self, request: Request) -> Response | Receive | None:
        """A response, or how the application is to receive the request, None being as it came."""
        if refused := self._stranger(request):
            return PlainTextResponse(refused, 403)
        path, method = request.url.path, request.method
        if ".." in path or "\\" in path or "\0" in path:
            return _nothing_here()
        if method in ("GET", "HEAD"):
            if path in PAGE or path in QUEUE or path.startswith((*PAGE_FOLDERS, f"{API}/heartbeat/")):
                return None
            if path.startswith(f"{API}/file="):
                return self._picture(path.removeprefix(f"{API}/file="))
            if path == f"{API}/upload_progress":
                return StreamingResponse(_done(), media_type="text/event-stream")
        if method == "POST":
            if path == f"{API}/upload":
                return await self._upload(request)
            if path == f"{API}/queue/join":
                return await self._join(request)
            if path in (f"{API}/cancel", f"{API}/reset"):
                return await self._body(request, 4096)
        return _nothing_here()

    def _stranger(self, request: Request) -> str | None:
        """Why a request does not come from this studio's own page, if it does not."""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            return "This studio answers its own page only."
        if self.hosts is not None and request.url.hostname not in self.hosts:
            return "This studio answers on this machine only: open it under 127.0.0.1."
        return None

    def _picture(self, token: str) -> Response:
        try:
            return FileResponse(self.uploads.path(token), media_type="image/png", headers={"cache-control": "private"})
        except DataError:
            return _nothing_here()

    async def _upload(self, request: Request) -> Response:
        """Keep the pictures of a form; answers their tokens, or a sentence."""
        most = self.uploads.most_bytes
        try:
            async with _bounded(request, most + 65536).form(max_files=4, max_fields=4) as form:
                files = [file for file in form.getlist("files") if not isinstance(file, str)]
                if not files:
                    return PlainTextResponse("No picture arrived: send one.", 400)
                tokens = []
                for file in files:
                    async with self._decoding:
                        tokens.append(await asyncio.to_thread(self.uploads.take, await file.read()))
        except _TooLarge:
            return PlainTextResponse(f"The file has more than {most / 2**20:g} MiB: send a smaller picture.", 413)
        except DataError as error:
            return PlainTextResponse(str(error), 415)
        except (MultiPartException, HTTPException, ValueError, KeyError):
            return PlainTextResponse("The upload did not arrive whole: send the picture again.", 400)
        return Json(tokens)

    async def _join(self, request: Request) -> Response | Receive:
        """A request for work, each uploaded picture's token turned into its file."""
        try:
            asked = json.loads(await _bounded(request, MOST_JOIN_BYTES).body())
            if not isinstance(asked, dict):
                raise ValueError("not an object")
            if asked.get("fn_index") not in self.line.urgent and self.line.waiting() >= self.line.most:
                sentence = f"The studio is busy: {self.line.most} requests are waiting already. Try again in a minute."
                return Json({"detail": sentence}, 429, headers={"retry-after": "60"})
            rewritten = json.dumps({name: self._resolved(value) for name, value in asked.items()}).encode()
        except _TooLarge:
            return _too_large()
        except DataError as error:
            return Json({"detail": str(error)}, 400)
        except (ValueError, TypeError, RecursionError):
            return Json({"detail": "The request did not arrive whole: try again."}, 400)
        _set_length(request.scope, len(rewritten))
        return _replay(rewritten, request)

    def _resolved(self, value: Any) -> Any:
        """The value with every mention of a file replaced by what that file is here; DataError for foreign ones."""
        if isinstance(value, list):
            return [self._resolved(part) for part in value]
        if not isinstance(value, dict):
            return value
        if "path" in value or "url" in value:
            return {"path": str(self.uploads.path(value.get("path"))), "meta": {"_type": "gradio.FileData"}}
        return {name: self._resolved(part) for name, part in value.items()}

    async def _body(self, request: Request, most: int) -> Response | Receive:
        try:
            return _replay(await _bounded(request, most).body(), request)
        except _TooLarge:
            return _too_large()


class _TooLarge(Exception):
    """More bytes than allowed."""


def _bounded(request: Request, most: int) -> Request:
    """The request, raising _TooLarge as soon as more bytes come than allowed."""
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _TooLarge
        return message

    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:

        async def refuse() -> Message:
            raise _TooLarge

        return Request(request.scope, refuse)
    return Request(request.scope, receive)


def _replay(body: bytes, request: Request) -> Receive:
    """A body that was read already, to be received again."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await request.receive()

    return receive


def _set_length(scope: Scope, length: int) -> None:
    kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    scope["headers"] = [*kept, (b"content-length", str(length).encode())]


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sending


async def _done() -> Any:
    yield 'data: {"msg": "done"}\n\n'


def _nothing_here() -> Response:
    return PlainTextResponse("There is nothing here.", 404)


def _too_large() -> Response:
    return Json({"detail": "The request is too large: use a smaller picture or fewer words."}, 413)
