"""The background library: what is taken in, what is chosen, what is refused."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from actors.video.limits import Limits
from actors.video.scan import inspect
from cluster.errors import MediaError, StoppedError, UsageError
from jobs.backgrounds import CATEGORIES, MANIFEST, Library, open_once, resolve
from jobs.inputs import Input
from jobs.restage.ingest import Look
from tests.jobs.inprocess import ingest_of
from tests.media import write_clip

KEYS = [f"{number:064x}" for number in range(400)]


def accept(_path: Path) -> None:
    """Takes any file: the tests that are not about opening files need none that opens."""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "backgrounds", accept)


def add(library: Library, tmp_path: Path, name: str, category: str = "popular") -> Path:
    file = tmp_path / name
    file.write_bytes(name.encode())
    return library.add(category, file, source="own camera", licence="CC0-1.0").path


def test_added_item_is_copied_with_source_and_licence(library: Library, tmp_path: Path) -> None:
    path = add(library, tmp_path, "海滩 beach.mp4")
    (listed,) = library.list("popular")
    assert (listed.path, listed.item.source, listed.item.licence) == (path, "own camera", "CC0-1.0")
    assert path.read_bytes() == (tmp_path / "海滩 beach.mp4").read_bytes()
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("known", [{}, {"source": "own camera"}, {"licence": "CC0-1.0"}, {"source": "", "licence": ""}])
def test_item_without_source_and_licence_is_refused_unless_allowed(
    library: Library, tmp_path: Path, known: dict[str, str]
) -> None:
    (tmp_path / "beach.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match="--allow-unlicensed"):
        library.add("popular", tmp_path / "beach.mp4", **known)
    assert library.list("popular") == ()
    library.add("popular", tmp_path / "beach.mp4", **known, allow_unlicensed=True)
    with pytest.raises(UsageError, match=r"beach\.mp4"):
        library.choose("popular", KEYS[0])
    assert library.choose("popular", KEYS[0], allow_unlicensed=True).name == "beach.mp4"


def test_file_dropped_into_a_category_is_refused_until_it_is_written_down(library: Library, tmp_path: Path) -> None:
    add(library, tmp_path, "beach.mp4")
    dropped = library.root / "popular" / "dropped.mp4"
    dropped.write_bytes(b"dropped")
    assert [listed.listed for listed in library.list("popular")] == [True, False]
    with pytest.raises(UsageError, match=r"dropped\.mp4"):
        library.choose("popular", KEYS[0])
    library.add("popular", dropped, source="a friend", licence="CC-BY-4.0")
    assert all(listed.item.licensed for listed in library.list("popular"))
    assert len(library.list("popular")) == 2


def test_item_that_does_not_open_is_refused(tmp_path: Path) -> None:
    library = Library(tmp_path / "backgrounds", lambda path: open_once(path, Limits()))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(MediaError, match=r"broken\.png"):
        library.add("popular", tmp_path / "broken.png", source="s", licence="l")
    assert not (library.root / "popular").exists()
    cv2.imwrite(str(tmp_path / "whole.png"), np.zeros((32, 32, 3), np.uint8))
    library.add("popular", tmp_path / "whole.png", source="s", licence="l")


def test_another_file_of_the_same_name_is_refused(library: Library, tmp_path: Path) -> None:
    add(library, tmp_path, "beach.mp4")
    (tmp_path / "beach.mp4").write_bytes(b"another beach")
    with pytest.raises(UsageError, match="rename"):
        library.add("popular", tmp_path / "beach.mp4", source="s", licence="l")


def test_items_added_at_once_are_all_written_down(library: Library, tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(8)]
    threads = [threading.Thread(target=add, args=(library, tmp_path, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [listed.item.file for listed in library.list("popular") if listed.listed] == names


def test_choice_is_the_same_again_and_uses_every_item(library: Library, tmp_path: Path) -> None:
    for number in range(4):
        add(library, tmp_path, f"{number}.mp4")
    chosen = [library.choose("popular", key) for key in KEYS]
    assert chosen == [Library(library.root, accept).choose("popular", key) for key in KEYS]
    counts = Counter(chosen)
    assert len(counts) == 4
    assert min(counts.values()) > 60  # of 400, 100 expected


def test_adding_an_item_moves_clips_only_to_it(library: Library, tmp_path: Path) -> None:
    for number in range(4):
        add(library, tmp_path, f"{number}.mp4")
    before = [library.choose("popular", key) for key in KEYS]
    new = add(library, tmp_path, "new.mp4")
    after = [library.choose("popular", key) for key in KEYS]
    moved = [now for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {new}
    assert len(moved) < len(KEYS) / 2


def test_categories_are_the_five_and_the_users_folders(library: Library) -> None:
    assert library.categories() == CATEGORIES
    (library.root / "winter").mkdir(parents=True)
    assert library.categories() == (*CATEGORIES, "winter")


def test_background_is_a_colour_a_file_or_a_category(library: Library, tmp_path: Path) -> None:
    path = add(library, tmp_path, "beach.mp4", "folk")
    assert resolve("#20405f", library, KEYS[0]) == "#20405f"
    assert resolve("white", library, KEYS[0]) == "white"
    assert resolve(str(tmp_path / "beach.mp4"), library, KEYS[0]) == str(tmp_path / "beach.mp4")
    assert resolve("folk", library, KEYS[0]) == str(path)


def test_empty_category_says_how_to_add_to_it(library: Library) -> None:
    with pytest.raises(UsageError, match="troupe backgrounds add taichi FILE"):
        resolve("taichi", library, KEYS[0])


@pytest.mark.parametrize("spec", ["#12345", "no-such", "../popular"])
def test_unknown_background_lists_what_there_is(library: Library, spec: str) -> None:
    with pytest.raises(UsageError, match="popular, classic, folk, fitness, taichi"):
        resolve(spec, library, KEYS[0])


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"items": [{"file": "../up.mp4"}]}', '{"items": [{"file": "gone.mp4"}]}']
)
def test_broken_manifest_is_named(library: Library, manifest: str) -> None:
    folder = library.root / "popular"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(manifest)
    with pytest.raises(UsageError, match=MANIFEST):
        library.list("popular")


@pytest.mark.parametrize("work", ["hashing", "scanning"])
def test_background_video_that_is_hashed_and_scanned_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    clip = write_clip(tmp_path / "a.mp4", frames=6, width=64, height=48).path
    ingest = ingest_of(tmp_path / "out", matte="chroma", background=str(clip))
    if work == "scanning":
        monkeypatch.setattr("jobs.restage.ingest.sha256_of", lambda *_: "0" * 64)
    else:
        monkeypatch.setattr("jobs.restage.ingest.scan", lambda *_, **__: pytest.fail("it was hashed unheard"))

    def stop() -> None:
        raise StoppedError("task", "was cancelled")

    ingest.beat = stop
    with pytest.raises(StoppedError):
        ingest.task(Input(clip, tmp_path / "out" / "a.mp4"), Look(inspect(clip, Limits()).info, "green", "chroma"))
