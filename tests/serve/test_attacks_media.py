"""What strangers' URLs and files lead to when their tasks are worked on: nothing but themselves."""

from __future__ import annotations

import base64
import json
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.video.limits import Limits
from actors.video.scan import inspect
from serve.store import Task, TaskState
from tests.broken import write_broken
from tests.media import Look, number, write_clip
from tests.serve.socketed import Live, live
from tests.serve.transfer.test_fetch import GOOD, REFUSED, SPACED, Stub
from tests.serve.transfer.test_uploads import END, FORM, part
from tests.serve.web import Canary, WebServer, answer

JSON = {"content-type": "application/json"}
SECRET = {"TROUPE_WEBHOOK_SECRET": "whsec_" + base64.b64encode(bytes(32)).decode()}
DISGUISES = ["hls.m3u8", "hls_disguised.mp4", "hls_http.mp4", "join_absolute.mp4", "join_neighbour.mp4", "dash.mp4"]
DISGUISES += ["sdp.mp4", "address.mp4"]
LIGHT = {"preset": "draft", "upscale": "lanczos", "target": "64x48"}
CANARY = 2900  # numbers that only the canary's frames show


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as listening:
        yield listening


def posted(here: Live, files: dict[str, bytes], **fields: str) -> str:
    """Id of a new task."""
    body = b"".join(part(name, content, name) for name, content in files.items())
    body += b"".join(part(name, value.encode()) for name, value in (LIGHT | fields).items()) + END
    made = here.ask("POST", "/v1/tasks", body, {"content-type": FORM})
    assert made.status == 202, made.text
    return str(made.json()["id"])


def left(here: Live, task: Task) -> list[str]:
    """Files of a task's work and result."""
    folder = here.desk.data.of(task.id)
    return [path.name for part in (folder.work, folder.result) for path in part.rglob("*") if path.is_file()]


# --- URLs


def test_no_writing_of_a_private_address_is_taken_by_any_route(canary: Canary, tmp_path: Path) -> None:
    with live(tmp_path, environ=SECRET, allow_ports=(canary.port, 80, 443)) as here:
        for text in REFUSED + SPACED:
            url = text.format(port=canary.port)
            bodies = [
                ("/v1/tasks", {"video_url": url}),
                ("/api/v1/video-tasks/create", {"video_url": url, "uid": "u"}),
            ]
            if url:  # an empty webhook is none
                bodies.append(("/v1/tasks", {"video_url": "https://example.com/a.mp4", "webhook": url}))
            for path, body in bodies:
                said = here.ask("POST", path, _json(body), JSON)
                if said.status == 202 or (said.status == 200 and path.startswith("/api")):
                    assert (
                        "localhost" in unicodedata.normalize("NFKC", url).lower()
                    )  # a name, which is judged by what it leads to
                    if "webhook" in body:
                        here.ask("DELETE", f"/v1/tasks/{said.json()['id']}")
                    else:
                        assert (here.work().error or {})["code"] == "url_refused"
                else:
                    assert said.status == 422, (path, body, said.text)
        time.sleep(2)  # for the webhooks
    assert canary.hits == 0


@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.1"]],
        [["::1"]],
        [["::ffff:127.0.0.1"]],
        [["64:ff9b::7f00:1"]],
        [["10.0.0.1"]],
        [["169.254.169.254"]],
        [["fe80::1%lo"]],
        [[GOOD, "127.0.0.1"]],
        [["8.8.8.8", "0.0.0.0"]],
    ],
)
def test_name_that_leads_inside_is_refused_when_its_task_is_worked_on(
    answers: list[list[str]], canary: Canary, tmp_path: Path
) -> None:
    stub = Stub(media_test=answers)
    with live(tmp_path, resolver=stub, allow_ports=(canary.port,), allow_networks=(f"{GOOD}/32",)) as here:
        made = here.ask("POST", "/v1/tasks", _json({"video_url": f"http://media.test:{canary.port}/v.mp4"}), JSON)
        assert made.status == 202
        task = here.work()
        assert (task.state, (task.error or {})["code"]) == (TaskState.FAILED, "url_refused")
        told = here.ask("GET", f"/v1/tasks/{task.id}").text
        assert not [address for listed in answers for address in listed if address in told]
        assert left(here, task) == []
    assert canary.hits == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "http://[::1]:{port}/",
        "http://2130706433:{port}/",
        "//localhost:{port}/",
        "http://media.test:{port}/again",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_x",
    ],
)
def test_redirect_inside_and_a_name_that_changes_its_answer_are_refused(
    location: str, canary: Canary, tmp_path: Path
) -> None:
    stub = Stub(media_test=[[GOOD], ["127.0.0.1"]], localhost=[["127.0.0.1", "::1"]])
    where = location.format(port=canary.port)
    server = WebServer(lambda request: answer(request, status=302, Location=where), port=canary.port)
    with (
        server,
        live(tmp_path, resolver=stub, allow_ports=(canary.port,), allow_networks=(f"{GOOD}/32",)) as here,
    ):
        here.ask("POST", "/v1/tasks", _json({"video_url": f"http://media.test:{canary.port}/v.mp4"}), JSON)
        task = here.work()
        assert (task.state, (task.error or {})["code"]) == (TaskState.FAILED, "url_refused")
        assert len(server.seen) == 1
    assert canary.hits == 0


def test_webhook_whose_name_leads_inside_is_not_sent(canary: Canary, tmp_path: Path) -> None:
    stub, url = Stub(hook_test=[["127.0.0.1"]]), f"http://hook.test:{canary.port}/"
    with live(tmp_path, environ=SECRET, resolver=stub, allow_ports=(canary.port, 443)) as here:
        body = {"video_url": "https://example.com/a.mp4", "webhook": url}
        made = here.ask("POST", "/v1/tasks", _json(body), JSON)
        assert made.status == 202
        here.ask("DELETE", f"/v1/tasks/{made.json()['id']}")
        deadline = time.monotonic() + 20
        while not stub.asked and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        assert stub.asked
    assert canary.hits == 0


def test_video_of_a_url_is_worked_on_where_it_may_be_had(tmp_path: Path) -> None:
    """Without this the others could not fail."""
    video = write_clip(tmp_path / "a.mp4", frames=5, width=64, height=48).path.read_bytes()
    with (
        WebServer(lambda request: answer(request, video)) as server,
        live(tmp_path / "data", allow_ports=(server.port,), allow_networks=(f"{GOOD}/32",)) as here,
    ):
        here.ask("POST", "/v1/tasks", _json({"video_url": server.url, "matte": "none", **LIGHT}), JSON)
        task = here.work()
        assert task.state is TaskState.DONE, task.error
        assert (task.result or {})["frames"] == 5


# --- files


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], bytes, Path]:
    """Disguised playlists that point at a canary, an honest clip, and the canary."""
    folder = tmp_path_factory.mktemp("hostile")
    secret = write_clip(folder / "canary.mp4", frames=8, width=64, height=48, first=CANARY).path
    inputs = folder / "inputs"
    inputs.mkdir()
    write_broken(inputs, secret, "http://127.0.0.1:9/clip.mp4")
    honest = write_clip(folder / "honest.mp4", frames=8, width=64, height=48, look=Look(screen=(0, 177, 64)))
    return {name: (inputs / name).read_bytes() for name in DISGUISES}, honest.path.read_bytes(), secret


@pytest.mark.parametrize("role", ["file", "background", "mask"])
def test_disguised_playlist_shows_nothing_of_what_it_points_at(
    role: str, hostile: tuple[dict[str, bytes], bytes, Path], tmp_path: Path
) -> None:
    disguises, honest, _ = hostile
    matte = {"file": "none", "background": "chroma", "mask": "given"}[role]
    before = _decoders()
    with live(tmp_path) as here:
        # The neighbour that a relative name could reach: the task's own files, and those of another task.
        other = here.desk.data.of(posted(here, {"file": hostile[2].read_bytes()}, matte="none"))
        here.ask("DELETE", f"/v1/tasks/{other.id}")
        more = dict(disguises)
        for name in ("input", f"../../{other.id}/input/input", f"{other.input}/input"):
            more[f"join {name}"] = f"ffconcat version 1.0\nfile '{name}'\n".encode()
            more[f"list {name}"] = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{name}\n#EXT-X-ENDLIST\n".encode()
        for name, content in more.items() if role == "file" else list(more.items())[::3]:
            posted(here, {"file": honest, role: content} if role != "file" else {"file": content}, matte=matte)
            task = here.work()
            assert (task.state, (task.error or {})["code"]) == (TaskState.FAILED, "media_refused"), (name, task.error)
            assert not [each for each in left(here, task) if each.endswith((".mp4", ".mkv", ".png"))], name
            here.ask("GET", f"/v1/tasks/{task.id}")
    assert _decoders() <= before


def test_canary_is_shown_when_it_is_sent_itself(hostile: tuple[dict[str, bytes], bytes, Path], tmp_path: Path) -> None:
    """Without this the others could not fail."""
    with live(tmp_path) as here:
        posted(here, {"file": hostile[2].read_bytes()}, matte="none")
        task = here.work()
        assert task.state is TaskState.DONE, task.error
        result = here.desk.data.of(task.id).result / "video.mp4"
        assert number(inspect(result, Limits()).first) == CANARY


@pytest.mark.parametrize("link", ["video.mp4", "."])
def test_link_in_place_of_a_result_is_not_followed(link: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "video.mp4").write_text("canary")
    with live(tmp_path / "data") as here:
        task_id = posted(
            here,
            {"file": write_clip(tmp_path / "a.mp4", frames=3, width=64, height=48).path.read_bytes()},
            matte="none",
        )
        assert here.work().state is TaskState.DONE
        result = here.desk.data.of(task_id).result
        (result / "video.mp4").unlink()
        if link == ".":
            result.rmdir()
            result.symlink_to(secret)
        else:
            (result / link).symlink_to(secret / "video.mp4")
        gone = here.ask("GET", f"/v1/tasks/{task_id}/result")
        assert gone.status == 410
        here.ask("DELETE", f"/v1/tasks/{task_id}?purge=true")
        assert (secret / "video.mp4").exists()


def _json(body: dict[str, str]) -> bytes:
    return json.dumps(body).encode()


def _decoders() -> int:
    """Decoding processes: children of this process's fork servers."""
    this = psutil.Process()
    servers = set(this.children())  # first, for they may end meanwhile
    return len(set(this.children(recursive=True)) - servers)
