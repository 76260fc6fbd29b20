"""Mutilated bodies and media on their whole way: refused, a failed task with a named error, or an honest result."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from actors.video.limits import Limits
from actors.video.scan import inspect
from serve.store import Task, TaskState
from tests.images import encoded
from tests.media import Look, Sound, write_clip
from tests.serve.socketed import Live, live
from tests.serve.transfer.test_uploads import END, FORM, part

SoakCount = Callable[[int, int], int]
SEED = 20_261
LIGHT = {"preset": b"draft", "upscale": b"lanczos", "target": b"64x48"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live(tmp_path_factory.mktemp("service"), attempts=1, on_demand_wait_s=0.1) as running:
        yield running


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small honest files of several containers and codecs."""
    folder = tmp_path_factory.mktemp("media")
    size, screen = {"frames": 12, "width": 64, "height": 48}, Look(screen=(0, 177, 64))
    write_clip(folder / "a.mp4", sounds=(Sound(seconds=0.4),), look=screen, **size)
    write_clip(folder / "b.mkv", sounds=(Sound(seconds=0.4),), look=screen, **size)
    write_clip(folder / "c.avi", codec="mpeg4", look=screen, **size)
    write_clip(folder / "d.ts", format="mpegts", look=screen, **size)
    write_clip(folder / "e.mp4", container_options={"movflags": "+frag_keyframe+empty_moov"}, look=screen, **size)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutilated(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bytes changed, a piece removed, doubled or overwritten, or its end cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, length = rng.randrange(len(found)), rng.choice((1, 4, 16, 200))
        match rng.randrange(7):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at : at + length] = rng.randbytes(length)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                found[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"))
            case 5:
                found = found[: max(1, at)]
            case _:
                for _ in range(20):
                    found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def form(files: dict[str, bytes], **fields: bytes) -> bytes:
    parts = [part(name, content, f"{name}.mp4") for name, content in files.items()]
    return b"".join(parts + [part(name, value) for name, value in (LIGHT | fields).items()]) + END


def check_ended(here: Live, task: Task) -> None:
    """It failed by a name that blames the input, or is done and can be seen."""
    if task.state is TaskState.FAILED:
        error = task.error or {}
        assert error["code"] in ("media_refused", "bad_request", "too_large"), error
        assert 400 <= error["status"] < 500
    else:
        assert task.state is TaskState.DONE, task
        result = here.desk.data.of(task.id).result / "video.mp4"
        assert inspect(result, Limits()).info.width == 64
        assert (task.result or {})["frames"] >= 1
        assert (task.result or {})["damaged"] >= 0
    assert here.ask("GET", f"/v1/tasks/{task.id}").status == 200
    assert here.ask("DELETE", f"/v1/tasks/{task.id}?purge=true").status == 204


@pytest.fixture(autouse=True)
def _nothing_stays(here: Live) -> Iterator[None]:
    here.ask("GET", "/healthz")
    before = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    yield
    assert here.folders() == []
    assert list((here.desk.data.root / "trash").iterdir()) == []
    # Processes that wait for images are replaced by others; there are never more of them.
    assert len(psutil.Process(os.getpid()).children(recursive=True)) <= max(len(before), 4)


@pytest.mark.soak
def test_mutilated_videos_fail_by_name_or_are_done(here: Live, media: dict[str, bytes], soak_count: SoakCount) -> None:
    count, rng = soak_count(12, 250), random.Random(SEED)
    for number in range(count):
        role = rng.choice(("file", "file", "file", "background", "mask"))
        honest = media[rng.choice(sorted(media))]
        bad = mutilated(media[sorted(media)[number % len(media)]], rng)
        files = {"file": bad} if role == "file" else {"file": honest, role: bad}
        matte = {"file": b"none", "background": b"chroma", "mask": b"given"}[role]
        damaged = rng.choice((b"true", b"false"))
        made = here.ask("POST", "/v1/tasks", form(files, matte=matte, allow_damaged=damaged), {"content-type": FORM})
        assert made.status in (202, 400, 422), made.text
        if made.status == 202:
            check_ended(here, here.work())


@pytest.mark.soak
def test_mutilated_forms_are_refused_or_taken_whole(here: Live, media: dict[str, bytes], soak_count: SoakCount) -> None:
    count, rng = soak_count(30, 500), random.Random(SEED + 1)
    whole = form({"file": media["a.mp4"][:3000]}, matte=b"none")
    small = part("preset", b"draft") + part("file", b"x" * 40, "a.mp4") + part("matte", b"none") + END
    worked = 0
    for number in range(count):
        body = mutilated(small if number % 3 else whole, rng)
        path = rng.choice(("/v1/tasks", "/v1/tasks", "/v1/upscale", "/api/v1/video-tasks/upload"))
        made = here.ask("POST", path, body, {"content-type": FORM})
        assert made.status in (200, 202, 400, 413, 422), made.text
        if made.status in (200, 202) and path != "/v1/upscale":
            if worked < count // 8:
                worked += 1
                check_ended(here, here.work())
            else:
                task_id = made.json().get("id") or made.json()["task_id"]
                assert here.ask("DELETE", f"/v1/tasks/{task_id}").status == 200


@pytest.mark.soak
def test_mutilated_images_are_refused_or_enlarged(here: Live, soak_count: SoakCount) -> None:
    count, rng = soak_count(24, 500), random.Random(SEED + 2)
    picture = np.random.default_rng(1).integers(0, 256, (24, 32, 4), np.uint8)
    kinds = {"png": encoded(picture, ".png"), "webp": encoded(picture, ".webp")}
    kinds["jpeg"] = encoded(np.ascontiguousarray(picture[:, :, :3]), ".jpg")
    for number in range(count):
        kind = sorted(kinds)[number % 3]
        path = rng.choice(("/v1/upscale?upscale=lanczos&scale=2", "/v1/matte?matte=selfie", "/v1/matte?matte=chroma"))
        made = here.ask("POST", path, mutilated(kinds[kind], rng), {"content-type": f"image/{kind}"})
        assert made.status in (200, 413, 422), made.text
        if made.status != 200:
            assert made.json()["code"] in ("media_refused", "no_screen", "too_large", "invalid"), made.text


@pytest.mark.soak
def test_mutilated_short_clips_are_refused_or_wait_for_their_runner(
    here: Live, media: dict[str, bytes], soak_count: SoakCount
) -> None:
    count, rng = soak_count(6, 120), random.Random(SEED + 3)
    for number in range(count):
        bad = mutilated(media[sorted(media)[number % len(media)]], rng)
        made = here.ask("POST", "/v1/restage", form({"file": bad}, matte=b"none"), {"content-type": FORM})
        assert made.status in (202, 400, 413, 422), made.text
        if made.status == 202:
            check_ended(here, here.work())
