"""Inputs are found wherever they lie, results never replace or become inputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.errors import MediaError, UsageError
from jobs.inputs import check_name, collect


def clips(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


def named(found: tuple[list[object], list[Path]]) -> list[str]:
    return [f"{item.path.name} → {item.output.name}" for item in found[0]]  # type: ignore[attr-defined]


def test_result_that_would_replace_an_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips(tmp_path, "dance.mp4", "other/dance.mp4", "b.mov")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"would replace the input .*choose another -o"):
        collect([Path("dance.mp4")], Path())
    with pytest.raises(UsageError, match="would replace the input"):
        collect([Path("other"), Path("dance.mp4")], Path())
    assert named(collect([Path("b.mov")], Path())) == ["b.mov → b.mp4"]


def test_results_are_no_inputs_behind_dots_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips(tmp_path / "videos", "a.mp4", "out/a.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    monkeypatch.chdir(tmp_path / "videos/out")
    assert named(collect([Path("..")], Path())) == ["a.mp4 → a.mp4"]
    assert named(collect([tmp_path / "link"], tmp_path / "videos/out")) == ["a.mp4 → a.mp4"]
    assert named(collect([tmp_path / "videos"], tmp_path / "link/out")) == ["a.mp4 → a.mp4"]


def test_text_beside_clips_is_passed_over(tmp_path: Path) -> None:
    clips(tmp_path, "a.mp4", "notes.txt", "cover.jpg", "a.mask.mp4")
    inputs, passed = collect([tmp_path], tmp_path / "out")
    assert [item.path.name for item in inputs] == ["a.mp4"]
    assert [path.name for path in passed] == ["cover.jpg", "notes.txt"]


def test_name_that_is_not_utf8_is_refused_readably(tmp_path: Path) -> None:
    check_name(tmp_path / "舞蹈.mp4")
    with pytest.raises(MediaError) as caught:
        check_name(tmp_path / os.fsdecode("舞.mp4".encode("gbk")))
    assert "\\xce\\xe8.mp4: its name is not UTF-8; rename it" in str(caught.value)
    str(caught.value).encode()
