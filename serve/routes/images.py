"""Images, answered at once by the resident models: enlarged, or cut out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from actors.catalogue import card
from actors.frames import FrameBatch
from actors.matte import border_screen
from actors.model import Step
from actors.upscale.sizes import output_size
from actors.video.image import encode_still
from actors.video.stills import Still
from cluster.errors import MediaError
from jobs.restage.settings import LANCZOS, MATTE_AUTO, MATTE_CHROMA, MATTE_FALLBACK, MATTE_GIVEN, MATTE_NONE
from serve.choices import settings_of
from serve.desk import Desk
from serve.edge.auth import Principal
from serve.edge.negotiation import best_kind
from serve.edge.problems import Problem, responses
from serve.intake import media_or_problem
from serve.performers import unless_gone
from serve.resizing import resized
from serve.routes.access import Asks, TheDesk
from serve.routes.held import Held
from serve.routes.tasks import COMMON
from serve.schemas import RestageChoices

router = APIRouter(prefix="/v1", tags=["on demand"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ANY = {f"image/{kind}": _BINARY for kind in ("png", "jpeg", "webp")}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary", "description": "The image."}},
    }
}
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A PNG, JPEG or WebP image, as it is or in a form.",
        "content": {**_ANY, "multipart/form-data": _FORM},
    }
}
_STATUSES = (400, 406, 408, 411, 413, 415, 422, 507, *COMMON)
_PIECE_BYTES = 1 << 16
_GONE = 499  # nobody reads it; the word that web servers use in their logs

Quality = Annotated[int, Query(ge=1, le=100, description="Of JPEG and WebP.", examples=[90])]
Preset = Annotated[str | None, Query(max_length=64, description="Whose model and size are taken where none is named.")]


@router.post(
    "/upscale",
    summary="Enlarge an image",
    response_class=Response,
    responses={200: {"description": "The enlarged image.", "content": _ANY}, **responses(*_STATUSES)},
    openapi_extra=_BODY,
)
async def upscale(
    desk: TheDesk,
    principal: Asks,
    request: Request,
    preset: Preset = None,
    upscale: Annotated[
        str | None,
        Query(max_length=64, description="`lanczos` or a Real-ESRGAN model.", examples=["realesr-animevideov3"]),
    ] = None,
    target: Annotated[
        str | None,
        Query(
            max_length=32, description="`720p` … `4k` (the short side), `WIDTHxHEIGHT`, or a factor.", examples=["2"]
        ),
    ] = None,
    scale: Annotated[float | None, Query(gt=0, le=16, description="A factor, instead of `target`.")] = None,
    denoise: Annotated[float | None, Query(ge=0, le=1, description="For `realesr-general-x4v3`.")] = None,
    max_input: Annotated[
        int | None, Query(ge=16, le=8192, description="Largest short side that enters the network.")
    ] = None,
    quality: Quality = 90,
) -> Response:
    """The answer's type follows `Accept`, and without one the type of the image that was sent."""
    choices = RestageChoices(
        preset=preset,
        upscale=upscale,
        target=target,
        scale=scale,
        denoise=denoise,
        max_input=max_input,
        matte=MATTE_NONE,
    )
    settings = settings_of(desk.config, choices)

    async def work(image: Still) -> Still:
        size = output_size((image.rgb.shape[1], image.rgb.shape[0]), settings.parsed_target)
        if size[0] * size[1] > desk.service.on_demand_megapixels * 1e6:
            most = desk.service.on_demand_megapixels
            raise Problem(413, "too_large", f"the result would be {size[0]}x{size[1]}; at most {most:g} megapixels")
        if settings.upscale == LANCZOS:
            return await asyncio.to_thread(resized, image, size)
        load = {} if settings.denoise is None else {"denoise": settings.denoise}
        step = Step(settings.upscale, load, {"size": list(size), "max_input": settings.max_input})
        return _still(await desk.performers.perform(step, _batch(image)), image)

    return await _answered(desk, principal, request, work, quality, alpha=False)


@router.post(
    "/matte",
    summary="Cut the person out of an image",
    response_class=Response,
    responses={
        200: {
            "description": "The person, with alpha around it.",
            "content": {f"image/{kind}": _BINARY for kind in ("png", "webp")},
        },
        **responses(*_STATUSES),
    },
    openapi_extra=_BODY,
)
async def matte(
    desk: TheDesk,
    principal: Asks,
    request: Request,
    preset: Preset = None,
    matte: Annotated[
        str | None,
        Query(max_length=64, description="`auto`, `chroma`, `selfie`, `rvm-mobilenetv3`, `rvm-resnet50`."),
    ] = None,
    long_side: Annotated[
        int | None, Query(ge=64, le=4096, description="Long side that a recurrent network looks at.")
    ] = None,
    quality: Quality = 90,
) -> Response:
    """PNG, or WebP when `Accept` prefers it: JPEG has no alpha."""
    settings = settings_of(desk.config, RestageChoices(preset=preset, matte=matte, long_side=long_side))
    if settings.matte in (MATTE_NONE, MATTE_GIVEN):
        raise Problem(422, "invalid", f"`matte={settings.matte}` cuts nobody out of an image")

    async def work(image: Still) -> Still:
        screen = border_screen(image.rgb) if settings.matte in (MATTE_AUTO, MATTE_CHROMA) else None
        if settings.matte == MATTE_CHROMA and not screen:
            raise Problem(422, "no_screen", "the image's border is not one flat green or blue")
        name = settings.matte if settings.matte != MATTE_AUTO else MATTE_CHROMA if screen else MATTE_FALLBACK
        params: dict[str, Any] = {"screen": screen} if name == MATTE_CHROMA else {}
        if name != MATTE_CHROMA and card(name).stateful:
            params = {"long_side": settings.long_side}
        return _still(await desk.performers.perform(Step(name, {}, params), _batch(image)), image)

    return await _answered(desk, principal, request, work, quality, alpha=True)


async def _answered(
    desk: Desk,
    principal: Principal,
    request: Request,
    work: Callable[[Still], Awaitable[Still]],
    quality: int,
    *,
    alpha: bool,
) -> Response:
    kinds = ("png", "webp") if alpha else ("png", "jpeg", "webp")
    accept = request.headers.get("accept", "*/*")
    wanted = best_kind(accept, kinds)

    async def do(image: Still) -> tuple[bytes, str]:
        done = await work(image)
        kind = wanted or (image.kind if image.kind in kinds else "png")
        if kind == "jpeg" and done.alpha is not None:
            kind = best_kind(accept, ("png", "webp")) or "png"
        return await asyncio.to_thread(encode_still, done.rgb, done.alpha, kind, quality), kind

    desk.on_demand.check(principal.name)  # so that nobody sends what would be refused
    async with _received(desk, principal, request) as path:
        with ExitStack() as held:
            held.enter_context(desk.on_demand.taken(principal.name))
            async with desk.images:
                if await request.is_disconnected():
                    return Response(status_code=_GONE)
                image = await _decoded(desk, path)
                made = await unless_gone(lambda: do(image), request.is_disconnected)
            if made is None:
                return Response(status_code=_GONE)
            place = held.pop_all()
    body, kind = made
    headers = {
        "Content-Length": str(len(body)),
        "Vary": "Accept",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Held(_pieces(body), place, media_type=f"image/{kind}", headers=headers)


@asynccontextmanager
async def _received(desk: Desk, principal: Principal, request: Request) -> AsyncIterator[Path]:
    """The image of a request, as a file for the moment, like those of every upload."""
    folder = await asyncio.to_thread(desk.data.create)
    try:
        quota = desk.auth.quota(principal)
        upload = await desk.image_uploads.receive(request, folder.input, quota, principal.name)
        if upload.fields:
            raise Problem(422, "invalid", "the form has the image alone; choices are in the query")
        yield upload.files[0].path
    finally:
        await asyncio.shield(asyncio.to_thread(desk.data.remove, folder.id))


async def _decoded(desk: Desk, path: Path) -> Still:
    def decode() -> Still:
        return desk.stills.decode(path.read_bytes(), "the image")

    async with desk.decoders:
        try:
            return await asyncio.to_thread(decode)
        except MediaError as error:
            raise media_or_problem(error) from error


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    """So that the server copies no more of it than the client takes."""
    whole = memoryview(body)
    for begin in range(0, len(body), _PIECE_BYTES):
        yield whole[begin : begin + _PIECE_BYTES]


def _batch(image: Still) -> FrameBatch:
    alpha = None if image.alpha is None else image.alpha[None]
    return FrameBatch(image.rgb[None], np.zeros(1, np.int64), np.ones(1, np.bool_), alpha)


def _still(batch: FrameBatch, image: Still) -> Still:
    return Still(batch.rgb[0], None if batch.alpha is None else batch.alpha[0], image.kind)
