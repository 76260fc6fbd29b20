"""`troupe submit`: what it sends, says and downloads, its exit codes, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from tests.images import encoded
from tests.jobs.command import Command, wait_until
from tests.serve.running import MADE, Running, running_service

TROUPE = ("-c", "from cli.start import main; main()")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A service, and a folder with a clip to submit as the working folder."""
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "dance.mkv").write_bytes(b"a clip")
    monkeypatch.chdir(folder)
    for name in ("TROUPE_SERVER", "TROUPE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with running_service(tmp_path) as running:
        yield running


def submit(here: Running, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["submit", "--server", here.url, *arguments])


def events(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_submitted_video_has_the_choices_of_the_command(here: Running) -> None:
    choices = ["--preset", "draft", "--scale", "2", "--crf", "30", "--x264", "slow", "--long-side", "512"]
    result = submit(here, "dance.mkv", *choices, "--background", "#20405f", "--split-shots")
    assert result.exit_code == 0, result.output
    claim = here.claim()
    payload = claim.task.payload
    assert f"{claim.task.id}  dance.mkv" in result.stdout
    assert f"1 of 1 videos submitted to {here.url}" in result.stdout
    settings = payload["settings"]
    assert [settings[name] for name in ("preset", "target", "crf", "x264", "long_side")] == [
        "draft",
        "2",
        30,
        "slow",
        512,
    ]
    assert settings["background"] == "#20405f"
    assert (payload["split_shots"], payload["allow_damaged"]) == (True, False)


def test_local_background_and_the_mask_beside_the_clip_go_along(here: Running) -> None:
    Path("beach.png").write_bytes(encoded(np.zeros((32, 32, 3), np.uint8), ".png"))
    Path("dance.mask.mkv").write_bytes(b"mask")
    assert submit(here, "dance.mkv", "--background", "beach.png", "--matte", "given").exit_code == 0
    inputs = here.desk.data.of(here.claim().task.id).input
    assert sorted(path.name for path in inputs.iterdir()) == ["background.png", "input", "input.mask.video"]
    assert submit(here, "dance.mkv", "--matte", "chroma").exit_code == 0
    assert [path.name for path in here.desk.data.of(here.claim().task.id).input.iterdir()] == ["input"]


def test_waiting_downloads_each_result_under_its_videos_name(here: Running) -> None:
    Path("more").mkdir()
    Path("more/spin.mp4").write_bytes(b"another")
    with here.working():
        result = submit(here, ".", "https://example.com/far/walk.mov?key=1", "--wait", "-o", "out")
    assert result.exit_code == 0, result.output
    made = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert made == {"dance.mp4", "more/spin.mp4", "walk.mp4"}
    assert all(Path("out", name).read_bytes() == MADE for name in made)
    assert "3 of 3 videos done" in result.stdout
    assert "more/spin.mp4 → " in result.stdout
    assert "flac became AAC" in result.stdout


def test_json_is_one_object_a_line(here: Running) -> None:
    with here.working():
        found = events(submit(here, "dance.mkv", "--wait", "--json"))
    by_kind = {event["event"]: event for event in found}
    assert by_kind["submitted"]["task"]["state"] == "queued"
    assert by_kind["done"]["output"] == str(Path("output/dance.mp4").absolute())
    assert by_kind["done"]["task"]["id"] == by_kind["submitted"]["task"]["id"]
    assert (by_kind["summary"]["done"], by_kind["summary"]["failed"]) == (1, 0)


def test_failed_task_says_why_and_exits_1(here: Running) -> None:
    failing = threading.Thread(target=here.fail, args=("dance.mkv: has no video stream",))
    failing.start()
    result = submit(here, "dance.mkv", "--wait")
    failing.join()
    assert result.exit_code == 1
    assert "dance.mkv: has no video stream (task " in result.stdout
    assert "0 of 1 videos done" in result.stdout


def test_result_that_is_there_is_replaced_only_when_asked(here: Running) -> None:
    Path("out").mkdir()
    Path("out/dance.mp4").write_bytes(b"mine")
    with here.working():
        refused = submit(here, "dance.mkv", "--wait", "-o", "out")
        assert refused.exit_code == 2
        assert "is there already; replace it with --force" in refused.stdout
        assert here.count() == 0
        assert submit(here, "dance.mkv", "--wait", "-o", "out", "--force").exit_code == 0
    assert Path("out/dance.mp4").read_bytes() == MADE


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.mp4"], "does not exist"),
        (["dance.mkv", "--target", "720p", "--scale", "2"], "contradict each other"),
        (["dance.mkv", "-o", "out"], "add --wait"),
        (["dance.mkv", "https://example.com/a.mp4", "--mask", "m.mkv"], "the mask of one video"),
        (["https://example.com/a.mp4", "--background", "./beach.png"], "takes no files with it"),
        (["https://a.example/a.mp4", "https://b.example/a.mp4"], "like another input"),
        (["dance.mkv", "--preset", "none-such"], "choose one of draft, balanced, quality"),
        (["dance.mkv", "--background", "nowhere"], "neither a colour nor a category"),
        (["dance.mkv", "--webhook", "https://example.com/"], "no webhook secret"),
        (["dance.mkv", "--token", "two words"], "characters that no token has"),
        (["dance.mkv", "--server", "studio"], "is not an http or https address"),
    ],
)
def test_bad_usage_exits_2_and_leaves_no_task(here: Running, arguments: list[str], text: str) -> None:
    result = submit(here, *arguments)
    assert result.exit_code == 2, result.output
    assert text in result.stdout
    assert here.count() == 0


def test_refused_video_does_not_stop_the_others(here: Running) -> None:
    Path("empty.mp4").write_bytes(b"")
    result = submit(here, "empty.mp4", "dance.mkv")
    assert result.exit_code == 1
    assert "empty.mp4: the file is empty" in result.stdout
    assert "1 of 2 videos submitted" in result.stdout


def test_nobody_there_exits_1_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"a clip")
    result = CliRunner().invoke(app, ["submit", str(tmp_path / "a.mp4"), "--server", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "takes no connections; start it there with `troupe up`" in result.stdout


def test_interrupted_wait_says_how_to_go_on_and_that_way_works(here: Running) -> None:
    command = Command(
        "submit", "dance.mkv", "--wait", "-o", "my out", "--server", here.url, cwd=Path.cwd(), program=TROUPE
    )
    wait_until(here.count, "the task")
    line = ""
    while "queued" not in line:
        assert command.process.stdout is not None
        line = command.process.stdout.readline()
    command.process.send_signal(signal.SIGINT)
    ended = command.finish()
    task_id = here.finish()
    assert ended.code == 130
    told = f"interrupted; what was submitted goes on at {here.url}: "
    again = f"troupe tasks wait {task_id} -o 'my out' --server {here.url}"
    assert f"{told}`{again}` waits for it, `troupe tasks cancel {task_id} --server {here.url}` ends it" in ended.output
    result = CliRunner().invoke(app, ["tasks", "wait", task_id, "-o", "my out", "--server", here.url])
    assert result.exit_code == 0, result.output
    assert Path("my out/dance.mp4").read_bytes() == MADE


@pytest.mark.usefixtures("here")
def test_server_that_goes_for_good_is_given_up_with_how_to_go_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(running_service(tmp_path / "other"))

        def end_it() -> None:
            wait_until(other.count, "the task")
            stack.close()

        ending = threading.Thread(target=end_it)
        ending.start()
        result = submit(other, "dance.mkv", "--wait", "--patience", "0.5")
        ending.join()
    assert result.exit_code == 1
    assert "see whether it runs" in result.output
    assert f"--server {other.url}` waits for it" in result.output
