"""`troupe tasks`: its tables, its JSON, what it refuses and what it asks before it removes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from cli.remote import result_name
from serve.client import Client
from serve.store import NewTask, TaskState
from tests.serve.running import MADE, Running, running_service

NO_TASK = "0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with running_service(tmp_path) as running:
        monkeypatch.setenv("TROUPE_SERVER", running.url)
        monkeypatch.delenv("TROUPE_TOKEN", raising=False)
        yield running


@pytest.fixture
def ids(here: Running) -> list[str]:
    """A task that is done, one that failed, one that is queued."""
    with Client(here.url, environ={}) as client:
        found = [client.submit(f"https://example.com/{name}.mp4").id for name in ("dance", "spin", "walk")]
    assert here.finish() == found[0]
    assert here.fail("spin.mp4: has no video stream") == found[1]
    return found


def tasks(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["tasks", *arguments], input=stdin)


@pytest.mark.usefixtures("here")
def test_no_tasks_are_said_to_be_none() -> None:
    assert tasks("list").stdout == "no tasks\n"
    assert json.loads(tasks("list", "--json").stdout) == []


def test_table_has_a_line_for_each_task_newest_first(ids: list[str]) -> None:
    head, *lines = tasks("list").stdout.splitlines()
    assert head.split() == ["id", "state", "progress", "created", "took", "name"]
    assert [line.split()[:3] for line in lines] == [
        [ids[2], "queued", "-"],
        [ids[1], "failed", "-"],
        [ids[0], "done", "40/40"],
    ]
    assert lines[0].endswith("walk.mp4")


def test_list_is_filtered_by_state_and_number(ids: list[str]) -> None:
    assert [task["id"] for task in json.loads(tasks("list", "--limit", "1", "--json").stdout)] == [ids[2]]
    assert [task["id"] for task in json.loads(tasks("list", "--state", "done", "--json").stdout)] == [ids[0]]
    assert tasks("list", "--state", "nonsense").exit_code == 2
    assert all(tasks("list", "--state", state).exit_code == 0 for state in TaskState)


def test_show_tells_result_notices_and_errors(ids: list[str]) -> None:
    shown = tasks("show", ids[0], ids[1]).stdout
    assert f"{ids[0]}: dance.mp4" in shown
    assert f"40 frames, {len(MADE):,} bytes, sha256 " in shown
    assert "notice    sound track 0: flac became AAC" in shown
    assert "error     spin.mp4: has no video stream (media_refused)" in shown
    assert json.loads(tasks("show", ids[1], "--json").stdout)[0]["error"]["code"] == "media_refused"


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_one_that_is_not_there_does_not_stop_the_rest(ids: list[str], command: str) -> None:
    good = {"show": ids[0], "cancel": ids[2], "retry": ids[1]}[command]
    result = tasks(command, NO_TASK, good)
    assert result.exit_code == 2
    assert f"error: task {NO_TASK}: there is no such task; `troupe tasks list` shows yours" in result.stderr
    assert good in result.stdout


def test_cancel_and_retry_say_what_became_of_each(ids: list[str]) -> None:
    assert tasks("cancel", ids[2]).stdout == f"{ids[2]}: cancelled\n"
    assert tasks("retry", ids[2], ids[1]).stdout == f"{ids[2]}: queued\n{ids[1]}: queued\n"
    refused = tasks("cancel", ids[0])
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "the task is done already" in refused.stderr


def test_wait_downloads_and_tells_what_failed(ids: list[str], tmp_path: Path) -> None:
    result = tasks("wait", ids[0], ids[1], "-o", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "spin.mp4: has no video stream" in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dance.mp4"]
    assert (tmp_path / "out" / "dance.mp4").read_bytes() == MADE
    assert tasks("wait", ids[0], "-o", str(tmp_path / "out")).exit_code == 2, "it is there already"


def test_results_of_one_name_do_not_replace_each_other(here: Running, tmp_path: Path) -> None:
    with Client(here.url, environ={}) as client:
        both = [client.submit("https://example.com/dance.mp4").id for _ in range(2)]
    with here.working():
        assert tasks("wait", *both, "-o", str(tmp_path / "out")).exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"dance-{each}.mp4" for each in both}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dance.mkv", "dance.mp4"),
        ("../../etc/x.tar.gz", "x.tar.mp4"),
        ("..", "video.mp4"),
        ("", "video.mp4"),
        ("a\0b.mp4", "ab.mp4"),
        ("舞" * 100, "舞" * 66 + ".mp4"),
    ],
)
def test_result_is_named_like_its_video_and_never_leaves_the_folder(name: str, file: str) -> None:
    assert result_name(name) == file


def test_purge_asks_or_needs_yes(ids: list[str]) -> None:
    refused = tasks("purge", ids[0])
    assert refused.exit_code == 2
    assert "there is nobody to ask; add --yes" in refused.stderr
    assert tasks("show", ids[0]).exit_code == 0
    assert tasks("purge", ids[0], "--yes").stdout == "1 removed\n"
    assert tasks("show", ids[0]).exit_code == 2


def test_purge_by_age_takes_what_ended_and_leaves_what_is_younger_or_goes_on(ids: list[str]) -> None:
    assert json.loads(tasks("purge", "--older-than", "1", "--json").stdout) == {"removed": [], "failed": {}}
    done = json.loads(tasks("purge", "--older-than", "0", "--yes", "--json").stdout)
    assert set(done["removed"]) == set(ids[:2])
    assert [task["id"] for task in json.loads(tasks("list", "--json").stdout)] == [ids[2]]


def test_purge_tells_what_it_could_not_remove(ids: list[str]) -> None:
    result = tasks("purge", ids[2], ids[0], "--yes", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["removed"] == [ids[0]]
    assert "cancel it first" in told["failed"][ids[2]]


def test_show_tells_how_the_webhook_goes(here: Running) -> None:
    store = here.desk.store
    task = here.run(store.submit(NewTask("local", "restage", {}, webhook="https://example.com/")))
    assert "webhook   waiting\n" in tasks("show", task.id).stdout
    claim = here.claim()
    here.run(store.finish(claim, TaskState.CANCELLED))
    delivery = here.run(store.claim_delivery(30))
    assert delivery is not None
    here.run(store.settle_delivery(delivery, delivered=False, answer={"reason": "HTTP 410"}))
    assert "webhook   given up, attempt 1: HTTP 410\n" in tasks("show", task.id).stdout


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "arguments", [["purge"], ["purge", NO_TASK, "--older-than", "1"], ["show", "../x"], ["wait", "x"]]
)
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    assert tasks(*arguments).exit_code == 2


def test_nobody_there_exits_1_once_for_all() -> None:
    result = tasks("show", NO_TASK, NO_TASK.replace("0", "1"), "--server", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.count("takes no connections") == 1
