"""Images answered at once: the type that is asked for, limits before decoding, errors with names, nobody worked for."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster.errors import ClusterError
from serve.edge.auth import Principal, Tokens
from serve.edge.negotiation import Preference, best_kind
from serve.edge.problems import Problem
from serve.performers import unless_gone
from tests.images import bomb, encoded
from tests.serve.service import Service, service

PICTURE = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
PNG = encoded(PICTURE, ".png")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service"), on_demand_megapixels=1, on_demand_mib=8) as running:
        yield running


def read(body: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED))


def post(here: Service, path: str, body: bytes = PNG, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return here.client.post(path, content=body, headers={"content-type": "image/png"} | named)


def test_image_is_enlarged_by_the_model_that_is_named(here: Service) -> None:
    answer = post(here, "/v1/upscale?upscale=realesr-animevideov3&scale=2")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert read(answer.content).shape == (96, 128, 3)
    step = here.performers.steps[-1]
    assert (step.model, step.params["size"]) == ("realesr-animevideov3", [128, 96])
    assert here.folders() == []


def test_answer_has_the_type_that_accept_prefers_else_that_of_the_image(here: Service) -> None:
    url = "/v1/upscale?upscale=lanczos&scale=2"
    assert post(here, url, accept="image/webp").headers["content-type"] == "image/webp"
    assert post(here, url, accept="image/webp;q=0.1, image/*").headers["content-type"] == "image/png"
    assert post(here, url, encoded(PICTURE, ".jpg")).headers["content-type"] == "image/jpeg"
    form = here.client.post(url, files={"file": ("a.png", PNG)})
    assert read(form.content).shape == (96, 128, 3)


def test_matte_has_alpha_and_no_jpeg(here: Service) -> None:
    answer = post(here, "/v1/matte?matte=selfie")
    alpha = read(answer.content)[:, :, 3]
    assert (alpha[:, :32] == 255).all()
    assert (alpha[:, 32:] == 0).all()
    refused = post(here, "/v1/matte?matte=selfie", accept="image/jpeg")
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")


def test_image_with_alpha_has_the_next_type_that_accept_takes_after_jpeg(here: Service) -> None:
    clear, url = encoded(np.zeros((48, 64, 4), np.uint8), ".png"), "/v1/upscale?upscale=lanczos&scale=1"
    assert post(here, url, clear, accept="image/jpeg, image/png;q=0.5").headers["content-type"] == "image/png"
    assert post(here, url, clear, accept="image/jpeg").status_code == 406


def test_green_screen_is_keyed_without_a_pin(here: Service) -> None:
    picture = np.full((48, 64, 3), (0, 177, 64), np.uint8)
    picture[16:32, 24:40] = 200
    before = len(here.performers.steps)
    answer = post(here, "/v1/matte?matte=auto", encoded(picture, ".png"))
    assert answer.status_code == 200
    assert [step.model for step in here.performers.steps[before:]] == ["chroma"]
    assert post(here, "/v1/matte?matte=chroma").json()["code"] == "no_screen"


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/upscale", b"not an image", 422, "media_refused"),
        ("/v1/upscale", bomb(30_000), 422, "media_refused"),
        ("/v1/upscale", PNG[: len(PNG) // 2], 422, "media_refused"),
        ("/v1/upscale", bytes(9 * 2**20), 413, "too_large"),
        ("/v1/upscale?upscale=lanczos&target=4k", PNG, 413, "too_large"),
        ("/v1/upscale?upscale=none-such", PNG, 422, "invalid"),
        ("/v1/upscale?scale=2&target=720p", PNG, 422, "invalid"),
        ("/v1/upscale?scale=-1", PNG, 422, "invalid"),
        ("/v1/upscale?denoise=0.5&upscale=lanczos", PNG, 422, "invalid"),
        ("/v1/matte?matte=none", PNG, 422, "invalid"),
        ("/v1/matte?matte=given", PNG, 422, "invalid"),
        ("/v1/upscale", b"", 422, "empty_file"),
    ],
)
def test_refusals_are_named(here: Service, path: str, body: bytes, status: int, code: str) -> None:
    answer = post(here, path, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert here.folders() == []


def test_pin_that_is_not_there_is_said_so(here: Service) -> None:
    here.performers.error = ClusterError("pin restage", "is not deployed", remedy="run `troupe up`")
    try:
        answer = post(here, "/v1/upscale?upscale=realesr-animevideov3&scale=2")
    finally:
        here.performers.error = None
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_more_than_so_many_at_once_are_told_to_come_again_and_no_token_has_all_places(tmp_path: Path) -> None:
    known = {hashlib.sha256(name.encode()).digest(): Principal(name) for name in ("a", "b")}
    with service(tmp_path, tokens=Tokens(known), on_demand_at_once=2) as here, here.desk.on_demand.taken("a"):
        url = "/v1/upscale?upscale=lanczos"
        refused, answer = post(here, url, x_token="a"), post(here, url, x_token="b")
        assert (refused.status_code, refused.json()["code"]) == (429, "busy")
        assert answer.status_code == 200


def test_image_that_waits_lies_on_the_disk(here: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here.desk.images, "_value", 0)
    read: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or PNG)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(post, here, "/v1/upscale?upscale=lanczos&scale=2")
        while not here.desk.on_demand._taken.total():
            time.sleep(0.01)
        (folder,) = here.folders()
        path = here.desk.data.of(folder).input / "input-0"
        wait([waiting], 0.1)
        assert path.exists()
        assert read == []

        async def free() -> None:
            here.desk.images.release()

        here.run(free)
        assert waiting.result(30).status_code == 200
    assert read == [path]
    assert here.folders() == []


def test_work_ends_when_its_client_is_gone() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(True)
            raise

    async def gone() -> bool:
        return True

    async def run() -> None:
        assert await unless_gone(work, gone, every_s=0.01) is None

    asyncio.run(run())
    assert ended == [True]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", ""),
        ("image/*", ""),
        ("image/png", "png"),
        ("image/webp, image/png;q=0.9", "webp"),
        ("text/html, image/jpg", "jpeg"),
        ("image/png;q=0, */*;q=0.1", "jpeg"),
        ("image/png;q=nonsense, image/webp;q=0.2", "webp"),
    ],
)
def test_accept_is_read_as_the_standard_says(accept: str, kind: str) -> None:
    assert best_kind(accept, ("png", "jpeg", "webp")) == kind


def test_accept_of_nothing_that_there_is_is_refused() -> None:
    with pytest.raises(Problem) as caught:
        best_kind("text/html, image/png;q=0", ("png",))
    assert caught.value.status == 406


@pytest.mark.parametrize(
    ("header", "seconds", "applied"),
    [
        ("", None, ""),
        ("respond-async", 0.0, "respond-async"),
        ("respond-async, wait=5", 5.0, "wait=5"),
        ("wait = 3", 3.0, "wait=3"),
        ("wait=9999", 60.0, "wait=60"),
        ("return=minimal", None, ""),
    ],
)
def test_prefer_is_read_as_the_standard_says(header: str, seconds: float | None, applied: str) -> None:
    assert Preference.of(header, 60) == Preference(seconds, applied)
