"""Storage and CDN over HTTP, at an origin of their own: the API key must never get there."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from aiohttp import web

from simulator import media
from simulator.answers import Answer
from simulator.effects import NO_EFFECT, Effect
from simulator.faults import Subject
from simulator.http_api import hang_up, send
from simulator.storage import BUCKET, StorageError, Upload
from simulator.world import World

Handler = Callable[[web.Request], Awaitable[web.Response]]


class HttpStorage:
    """Presigned PUTs and signed GETs as aiohttp handlers."""

    def __init__(self, world: World) -> None:
        self.world = world

    def routes(self) -> list[web.RouteDef]:
        """The routes of storage and CDN."""
        return [
            web.put(f"/{BUCKET}/{{path:.+}}", self._put),
            web.get("/cdn/{name}", self._media),
        ]

    async def _put(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("put", request, self._store)

    async def _media(self, request: web.Request) -> web.StreamResponse:
        return await self._handle("cdn", request, self._serve)

    async def _handle(
        self, endpoint: str, request: web.Request, process: Handler
    ) -> web.StreamResponse:
        records, path = self.world.records, request.path
        records.received(endpoint)
        if "X-API-Key" in request.headers:
            records.key_leaks += 1
        name, effect = self._fault(endpoint, path)
        if effect.delay_before:
            await asyncio.sleep(effect.delay_before)
        response = web.Response()
        outcome = "not processed"
        try:
            if effect.process:
                response = await process(request)
                outcome = str(response.status)
        except StorageError as error:
            outcome = f"{error.status} {error.code}"
            response = _refusal(error)
        if effect.delay_after:
            await asyncio.sleep(effect.delay_after)
        records.done(endpoint, outcome, time=self.world.clock.wall(), fault=name, about=path)
        if name == "cut_json" and response.status == 200:
            return await _cut(request, response)
        if effect.drop:
            return await send(request, Answer(), drop=True)
        if effect.reshape is not None:
            return _reshaped(effect)
        return response

    def _fault(self, endpoint: str, path: str) -> tuple[str | None, Effect]:
        fault = self.world.faults.pick(Subject(endpoint, text=path))
        return (None, NO_EFFECT) if fault is None else (fault.order.kind, fault.effect)

    async def _store(self, request: web.Request) -> web.Response:
        upload = self.world.uploads.check_put(
            request.match_info["path"],
            request.query,
            request.headers,
            self.world.clock.validity_now(),
        )
        data = await self._receive(request, upload)
        upload.data = data
        upload.puts += 1
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return web.Response(headers={"ETag": f'"{digest}"'})

    async def _receive(self, request: web.Request, upload: Upload) -> bytes:
        limit = self.world.config.max_upload_bytes
        if (request.content_length or 0) > limit:
            upload.refusals.append("EntityTooLarge")
            raise StorageError(400, "EntityTooLarge", f"At most {limit} bytes are taken")
        data = bytearray()
        async for chunk in request.content.iter_chunked(2**16):
            data += chunk
        return bytes(data)

    async def _serve(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if "X-API-Key" in request.headers:
            raise StorageError(400, "InvalidRequest", "The API key must not be sent to the CDN")
        self.world.signer.check_media(name, request.query, self.world.clock.validity_now())
        task = self.world.tasks.find(name.partition(".")[0])
        if task is None:
            raise StorageError(404, "NoSuchKey", "The video is gone")
        mark = "" if self.world.config.same_media else task.task_id
        if name.endswith(".mp4"):
            return _part(request, media.video(mark), "video/mp4")
        return _part(request, media.last_frame(mark), "image/jpeg")


async def _cut(request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Half of a file under the length of all of it; then the connection is closed."""
    body = bytes(whole.body) if isinstance(whole.body, bytes | bytearray) else b""
    response = web.StreamResponse(headers={"Content-Type": whole.content_type})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    hang_up(request)
    return response


def _part(request: web.Request, data: bytes, content_type: str) -> web.Response:
    """What of it was asked for: players ask for ranges."""
    headers = {"Accept-Ranges": "bytes"}
    try:
        start, stop, _ = request.http_range.indices(len(data))
    except ValueError:
        start = stop = len(data)
    if "Range" not in request.headers:
        return web.Response(body=data, content_type=content_type, headers=headers)
    if start >= stop:
        headers["Content-Range"] = f"bytes */{len(data)}"
        return web.Response(status=416, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(
        status=206, body=data[start:stop], content_type=content_type, headers=headers
    )


def _refusal(error: StorageError) -> web.Response:
    return web.Response(status=error.status, body=error.xml(), content_type="application/xml")


def _reshaped(effect: Effect) -> web.StreamResponse:
    """Faults that speak in envelopes, put into storage's own words."""
    answer = Answer() if effect.reshape is None else effect.reshape(Answer())
    if answer.raw is not None:
        return web.Response(
            status=answer.status,
            body=answer.raw,
            content_type=answer.content_type,
            headers=answer.headers,
        )
    code = str(answer.envelope.get("code", "InternalError"))
    status = answer.status if answer.status >= 400 else 500
    response = _refusal(StorageError(status, code, str(answer.envelope.get("message", ""))))
    response.headers.update(answer.headers)
    return response
