"""Folders of tasks: nothing outside of them is opened or removed, and what is old goes."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.errors import UsageError
from serve.folders import DataFolder, Ended, FolderError, TaskFolder, default_data

NOW = datetime(2026, 1, 10, tzinfo=UTC)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


def with_result(data: DataFolder, content: bytes = b"video") -> TaskFolder:
    task = data.create()
    (task.result / "final.mp4").write_bytes(content)
    return task


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        ("/srv/a", {"TROUPE_DATA": "/srv/b"}, Path("/srv/a")),
        ("", {"TROUPE_DATA": "/srv/b", "XDG_DATA_HOME": "/x"}, Path("/srv/b")),
        ("", {"XDG_DATA_HOME": "/x"}, Path("/x/troupe")),
        ("", {"XDG_DATA_HOME": "relative"}, Path.home() / ".local/share/troupe"),
        ("", {}, Path.home() / ".local/share/troupe"),
    ],
)
def test_data_folder_is_where_the_configuration_or_the_environment_says(
    configured: str, environ: dict[str, str], expected: Path
) -> None:
    assert default_data(configured, environ) == expected


def test_folders_of_a_task_are_its_users_only(data: DataFolder) -> None:
    task = data.create()
    assert data.ids() == [task.id]
    for folder in (data.root, task.input.parent, task.input, task.work, task.result):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert data.of(task.id) == task


def test_root_that_cannot_be_used_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"troupe\.service\.data"):
        DataFolder(tmp_path / "file" / "data")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="every user"):
        DataFolder(tmp_path / "open")


@pytest.mark.parametrize("task_id", ["", ".", "..", "../x", "a/b", "\0", "0" * 36, "A" * 8 + "-" + "b" * 27, "x" * 500])
def test_text_that_is_no_id_names_no_folder(data: DataFolder, task_id: str) -> None:
    for use in (data.of, data.remove, data.size, lambda text: data.open_result(text, "final.mp4")):
        with pytest.raises(FolderError, match="id"):
            use(task_id)


def test_result_is_read_to_its_end_though_the_task_is_removed(data: DataFolder) -> None:
    task = with_result(data)
    with data.open_result(task.id, "final.mp4") as file:
        assert data.remove(task.id)
        assert file.read() == b"video"
    with pytest.raises(FolderError, match="not there"):
        data.open_result(task.id, "final.mp4")


@pytest.mark.parametrize("name", ["", ".", "..", "../input/input-0", "/etc/passwd", "link", "folder", "pipe", "a\0b"])
def test_only_a_plain_file_of_the_result_is_opened(data: DataFolder, name: str, tmp_path: Path) -> None:
    task = with_result(data)
    (task.input / "input-0").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    (task.result / "link").symlink_to(tmp_path / "secret")
    (task.result / "folder").mkdir()
    os.mkfifo(task.result / "pipe")
    with pytest.raises(FolderError, match="not there"):
        data.open_result(task.id, name)


@pytest.mark.parametrize("part", ["task", "result"])
def test_link_in_place_of_a_folder_is_not_followed(data: DataFolder, part: str, tmp_path: Path) -> None:
    task = with_result(data)
    folder = task.result if part == "result" else task.input.parent
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    with pytest.raises(FolderError, match="not there"):
        data.open_result(task.id, "final.mp4")


def test_removal_does_not_follow_links(data: DataFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("")
    task = data.create()
    (task.work / "link").symlink_to(outside)
    linked = data.create()
    for folder in (linked.input, linked.work, linked.result):
        folder.rmdir()
    linked.input.parent.rmdir()
    linked.input.parent.symlink_to(outside)
    assert data.remove(task.id)
    assert data.remove(linked.id)
    assert (outside / "keep").exists()
    assert data.ids() == []
    assert list((data.root / "trash").iterdir()) == []


def test_one_of_several_removers_removes(data: DataFolder) -> None:
    task = with_result(data)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(data.remove(task.id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def aged(task: TaskFolder, days: float) -> Ended:
    return Ended(task.id, NOW - timedelta(days=days))


def test_oldest_go_until_the_rest_fits_and_only_ended_tasks_count(data: DataFolder) -> None:
    tasks = [with_result(data, b"x" * 100) for _ in range(5)]
    with_result(data, b"x" * 10_000)  # runs
    ended = [aged(task, days) for days, task in enumerate(tasks)]
    ended.append(
        Ended("0b9d6c1e-4f0a-4c39-9f0a-0d9c9d1f7c11", NOW - timedelta(days=9))
    )  # without files, which cancelled ones are
    assert data.excess(ended, keep_bytes=500) == []
    assert data.excess(ended, keep_bytes=250) == [tasks[4].id, tasks[3].id, tasks[2].id]
    assert data.excess(ended, keep_bytes=0) == [task.id for task in reversed(tasks)]
    assert len(data.ids()) == 6


def test_sweep_removes_what_no_task_knows_once_it_is_old(data: DataFolder) -> None:
    known, orphan = data.create(), data.create()
    (data.root / "trash" / "left").mkdir()
    (data.root / "trash" / "left" / "file").write_text("x")
    (data.root / "tasks" / "not-an-id").mkdir()
    later = orphan.input.stat().st_mtime + 6 * 3600 + 1
    assert data.sweep(lambda _: False) == []
    assert data.sweep(lambda task_id: task_id == known.id, clock=lambda: later) == [orphan.id]
    assert data.ids() == [known.id]
    assert (data.root / "tasks" / "not-an-id").exists()
    assert list((data.root / "trash").iterdir()) == []


def test_size_counts_files_once_and_links_not(data: DataFolder, tmp_path: Path) -> None:
    task = with_result(data, b"x" * 10)
    (tmp_path / "big").write_bytes(b"x" * 1000)
    (task.work / "link").symlink_to(tmp_path / "big")
    assert data.size(task.id) == 10
    data.remove(task.id)
    assert data.size(task.id) == 0
