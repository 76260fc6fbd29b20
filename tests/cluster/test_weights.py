"""The weights store: what is found, fetched, imported and verified."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.catalogue import weights_of_models
from cluster.download import Patience
from cluster.errors import UsageError, WeightsError
from cluster.filehash import HashMemory
from cluster.registry import ByHand, Entry, Licence, Registry, official_registry
from cluster.weights import State, WeightsStore, default_folder, mirrored
from tests.cluster.file_server import FileServer

CONTENT = bytes(range(256)) * 2048  # 512 KiB: several reads
NAME = "toy-x4"
FILE = "Toy_x4.pth"
QUICK = Patience(connect_seconds=5, silence_seconds=5, attempts=3, pause_seconds=0.0)


def toy_entry(**changes: Any) -> Entry:
    known: dict[str, Any] = {
        "name": NAME,
        "file": FILE,
        "urls": (f"https://github.com/someone/toy/releases/download/v1/{FILE}",),
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "pins": 1,
        "licence": Licence(spdx="MIT", settled=True, note="made up"),
        "purpose": "tests",
    }
    return Entry(**known | changes)


def toy_registry(size: int | None = len(CONTENT)) -> Registry:
    return Registry((toy_entry(bytes=size),))


def toy_store(folder: Path, **changes: Any) -> WeightsStore:
    return WeightsStore(folder, registry=Registry((toy_entry(**changes),)))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "store", registry=toy_registry())


def in_folder(store: WeightsStore) -> set[str]:
    return {path.name for path in store.folder.iterdir() if path.suffix != ".lock"}


# --- fetching


def test_fetched_file_is_official_and_found(store: WeightsStore) -> None:
    with FileServer(CONTENT) as server:
        (weight,) = store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert weight == store.find(NAME)
    assert weight.official
    assert weight.path.read_bytes() == CONTENT
    assert in_folder(store) == {FILE}
    assert server.asked[0].path == f"/gh/someone/toy/releases/download/v1/{FILE}"


def test_fetch_of_what_is_there_asks_nobody(store: WeightsStore) -> None:
    store.folder.mkdir()
    (store.folder / FILE).write_bytes(CONTENT)
    with FileServer(CONTENT) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert server.asked == []


def test_fetch_goes_on_where_the_connection_broke(store: WeightsStore) -> None:
    with FileServer(CONTENT, cut_after=[300_000, 100_000]) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert [asked.start for asked in server.asked] == [0, 300_000, 400_000]
    assert store.find(NAME).official


def test_fetch_goes_on_with_what_an_earlier_process_left(store: WeightsStore) -> None:
    store.folder.mkdir()
    (store.folder / f"{FILE}.part").write_bytes(CONTENT[:1000])
    with FileServer(CONTENT) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert [asked.start for asked in server.asked] == [1000]
    assert in_folder(store) == {FILE}


def test_server_without_ranges_starts_again(store: WeightsStore) -> None:
    store.folder.mkdir()
    (store.folder / f"{FILE}.part").write_bytes(b"x" * 1000)
    with FileServer(CONTENT, ranges=False) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert store.find(NAME).official


@pytest.mark.parametrize("lengths", [True, False], ids=["length sent", "no length sent"])
@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["size registered", "size unknown"])
def test_whole_file_arrives_whatever_is_known_of_its_size(tmp_path: Path, size: int | None, lengths: bool) -> None:
    store = WeightsStore(tmp_path, registry=toy_registry(size))
    totals = []
    with FileServer(CONTENT, lengths=lengths) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK, progress=lambda *seen: totals.append(seen))
    assert store.find(NAME).official
    assert totals[-1] == (NAME, len(CONTENT), len(CONTENT) if size or lengths else None)


def test_whole_part_of_unknown_size_is_not_downloaded_again(tmp_path: Path) -> None:
    store = WeightsStore(tmp_path, registry=toy_registry(None))
    (tmp_path / f"{FILE}.part").write_bytes(CONTENT)
    with FileServer(CONTENT) as server:
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert [asked.start for asked in server.asked] == [len(CONTENT)]
    assert store.find(NAME).official


def test_wrong_hash_is_an_error_and_leaves_nothing(store: WeightsStore) -> None:
    with FileServer(CONTENT[::-1]) as server, pytest.raises(WeightsError, match="is not the registered file"):
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert in_folder(store) == set()
    assert store.missing([NAME]) == (NAME,)


@pytest.mark.parametrize("lengths", [True, False], ids=["length sent", "no length sent"])
@pytest.mark.parametrize(
    "content", [CONTENT[:-1], CONTENT + b"x", b"<html>blocked</html>"], ids=["short", "long", "page"]
)
def test_file_of_another_size_is_refused(store: WeightsStore, content: bytes, lengths: bool) -> None:
    with (
        FileServer(content, lengths=lengths) as server,
        pytest.raises(WeightsError, match=r"download failed|not the registered file"),
    ):
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert not (store.folder / FILE).exists()


def test_address_that_always_breaks_off_is_given_up_and_the_part_kept(store: WeightsStore) -> None:
    with (
        FileServer(CONTENT, ranges=False, cut_after=[5000] * 50) as server,
        pytest.raises(WeightsError, match="run the same command again"),
    ):
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert (store.folder / f"{FILE}.part").stat().st_size == 5000
    assert len(server.asked) == 1 + QUICK.attempts


def test_busy_server_is_asked_again_and_an_absent_file_is_not(store: WeightsStore) -> None:
    with FileServer(CONTENT, statuses=[503, 429, 404]) as server:
        with pytest.raises(WeightsError, match="HTTP 404"):
            store.fetch([NAME], mirror=server.mirror, patience=QUICK)
        assert len(server.asked) == 3
        assert store.fetch([NAME], mirror=server.mirror, patience=QUICK)[0].official


def test_unreachable_address_ends_with_the_other_ways(store: WeightsStore) -> None:
    with FileServer(CONTENT) as server:
        mirror = server.mirror
    with pytest.raises(WeightsError, match=rf"troupe weights import FILE --name {NAME}"):
        store.fetch([NAME], mirror=mirror, patience=QUICK)


def test_two_fetches_at_once_download_once(store: WeightsStore) -> None:
    started = threading.Event()
    with FileServer(CONTENT, on_body=started.set) as server:
        results: list[bool] = []

        def fetch() -> None:
            results.append(store.fetch([NAME], mirror=server.mirror, patience=QUICK)[0].official)

        threads = [threading.Thread(target=fetch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert results == [True] * 4
    assert len(server.asked) == 1
    assert (store.folder / FILE).read_bytes() == CONTENT


def test_fetch_into_a_place_that_is_no_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = WeightsStore(tmp_path / "file" / "store", registry=toy_registry())
    with pytest.raises(WeightsError, match="TROUPE_WEIGHTS"):
        store.fetch([NAME], mirror="http://127.0.0.1:9/", patience=QUICK)


def test_unofficial_file_is_replaced_only_by_force(store: WeightsStore, tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(b"own")
    store.import_file(own, NAME)
    with FileServer(CONTENT) as server:
        with pytest.raises(WeightsError, match="--force"):
            store.fetch([NAME], mirror=server.mirror, patience=QUICK)
        assert store.fetch([NAME], mirror=server.mirror, patience=QUICK, force=True)[0].official
    assert in_folder(store) == {FILE}


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        (None, "https://github.com/a/b.pth"),
        ("https://mirror.example/", "https://mirror.example/https://github.com/a/b.pth"),
        ("https://mirror.example", "https://mirror.example/https://github.com/a/b.pth"),
        ("https://mirror.example/?get={url}", "https://mirror.example/?get=https://github.com/a/b.pth"),
        ("https://mirror.example/gh/{path}", "https://mirror.example/gh/a/b.pth"),
    ],
)
def test_mirror_address(mirror: str | None, expected: str) -> None:
    assert mirrored("https://github.com/a/b.pth", mirror) == expected


def test_mirror_of_github_is_not_asked_for_other_addresses() -> None:
    url = "https://huggingface.co/someone/toy/resolve/main/toy.pth"
    assert mirrored(url, "https://mirror.example/gh/{path}") == url
    assert mirrored(url, "https://mirror.example/") == f"https://mirror.example/{url}"


def test_mirror_that_is_no_address_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="mirror"):
        mirrored("https://github.com/a/b.pth", "mirror.example")


@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["size registered", "size unknown"])
def test_file_of_unpublished_hash_is_trusted_once_and_remembered(tmp_path: Path, size: int | None) -> None:
    store = toy_store(tmp_path, bytes=size, sha256=None, pins=0)
    with FileServer(CONTENT) as server:
        (weight,) = store.fetch([NAME], mirror=server.mirror, patience=QUICK)
        assert store.fetch([NAME], mirror=server.mirror, patience=QUICK) == (weight,)
    assert len(server.asked) == 1
    assert weight.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert not weight.official
    assert [status.state for status in store.verify()] == [State.UNVERIFIED]
    weight.path.write_bytes(b"another file")
    assert [status.state for status in store.verify()] == [State.DAMAGED]


def test_part_of_a_file_of_unpublished_hash_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(b"of another file")
    with FileServer(CONTENT) as server:
        toy_store(tmp_path, sha256=None, pins=0).fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert [asked.start for asked in server.asked] == [0]
    assert (tmp_path / FILE).read_bytes() == CONTENT


def test_another_size_than_the_registered_one_is_refused_without_a_hash_too(tmp_path: Path) -> None:
    store = toy_store(tmp_path, bytes=len(CONTENT) + 1, sha256=None, pins=0)
    with FileServer(CONTENT) as server, pytest.raises(WeightsError, match="another file"):
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)


def test_web_page_in_place_of_a_file_of_unpublished_hash_is_refused(tmp_path: Path) -> None:
    store = toy_store(tmp_path, bytes=None, sha256=None, pins=0)
    with (
        FileServer(b"<html>sign in</html>", content_type="text/html; charset=utf-8") as server,
        pytest.raises(WeightsError, match="sends a web page"),
    ):
        store.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert in_folder(store) == set()


@pytest.mark.parametrize("right", [True, False])
def test_published_md5_is_checked_where_no_sha256_is_known(tmp_path: Path, right: bool) -> None:
    md5 = hashlib.md5(CONTENT if right else b"another file").hexdigest()
    store = toy_store(tmp_path, sha256=None, md5=md5)
    with FileServer(CONTENT) as server:
        if right:
            assert not store.fetch([NAME], mirror=server.mirror, patience=QUICK)[0].official
        else:
            with pytest.raises(WeightsError, match=f"is not the registered file \\(md5 {md5}\\)"):
                store.fetch([NAME], mirror=server.mirror, patience=QUICK)
            assert in_folder(store) == set()


def test_licence_that_forbids_commercial_use_must_be_accepted(tmp_path: Path) -> None:
    licence = Licence(spdx="CC-BY-NC-4.0", settled=True, commercial=False, note="made up")
    store = toy_store(tmp_path, licence=licence)
    with FileServer(CONTENT) as server:
        for accepted in ([], ["S-Lab-1.0"]):
            with pytest.raises(WeightsError, match=r"CC-BY-NC-4\.0, forbids commercial use") as error:
                store.fetch([NAME], mirror=server.mirror, accepted=accepted, patience=QUICK)
            assert "--accept-licence CC-BY-NC-4.0" in error.value.remedy
        assert server.asked == []
        assert store.fetch([NAME], mirror=server.mirror, accepted=["CC-BY-NC-4.0"], patience=QUICK)[0].official
    (tmp_path / FILE).unlink()
    with pytest.raises(WeightsError, match=f"troupe weights fetch {NAME} --accept-licence CC-BY-NC-4.0"):
        store.find(NAME)


def test_file_that_only_a_browser_gets_comes_with_instructions(tmp_path: Path) -> None:
    by_hand = ByHand(page="https://drive.google.com/file/d/1/view", steps=f"download {FILE}")
    store = toy_store(tmp_path / "store", urls=(), by_hand=by_hand)
    for get in (lambda: store.fetch([NAME]), lambda: store.find(NAME)):
        with pytest.raises(WeightsError) as error:
            get()
        assert error.value.remedy == (
            f"open https://drive.google.com/file/d/1/view, download {FILE}, and run "
            f"`troupe weights import {FILE} --name {NAME}`"
        )
    (tmp_path / FILE).write_bytes(CONTENT)
    assert store.import_file(tmp_path / FILE, NAME).official


@pytest.mark.parametrize("file", ["a.pth", "a.pt", "a.ckpt", "a.pyth", "a.bin", "a.safetensors", "a.onnx"])
def test_files_of_every_format_are_fetched_found_and_imported(tmp_path: Path, file: str) -> None:
    url = f"https://github.com/someone/toy/releases/download/v1/{file}"
    fetched, imported = (toy_store(tmp_path / folder, file=file, urls=(url,)) for folder in ("fetched", "imported"))
    with FileServer(CONTENT) as server:
        (weight,) = fetched.fetch([NAME], mirror=server.mirror, patience=QUICK)
    assert imported.import_file(weight.path).official
    assert imported.find(NAME).path.name == file
    assert [status.state for status in imported.verify()] == [State.OFFICIAL]


# --- finding, importing, verifying


def test_missing_weights_name_the_commands_that_get_them(store: WeightsStore) -> None:
    with pytest.raises(WeightsError) as error:
        store.find(NAME)
    assert f"troupe weights fetch {NAME}" in str(error.value)
    assert f"troupe weights import FILE --name {NAME}" in str(error.value)


def test_unknown_name_lists_the_known_ones(store: WeightsStore) -> None:
    with pytest.raises(UsageError, match=NAME):
        store.find("no-such")


@pytest.mark.parametrize(("name", "given"), [(FILE, None), (f"{NAME}.pth", None), ("other.pt", NAME)])
def test_imported_copy_is_found_by_its_own_hash_and_reported(
    store: WeightsStore, tmp_path: Path, name: str, given: str | None
) -> None:
    source = tmp_path / name
    source.write_bytes(b"own values")
    imported = store.import_file(source, given)
    assert store.find(NAME) == imported
    assert not imported.official
    assert imported.sha256 == hashlib.sha256(b"own values").hexdigest()
    assert source.exists()
    assert [status.state for status in store.verify()] == [State.UNOFFICIAL]


def test_official_file_is_recognised_under_any_name(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "download(1).pth").write_bytes(CONTENT)
    assert store.import_file(tmp_path / "download(1).pth").official
    assert in_folder(store) == {FILE}


def test_unrecognised_file_asks_for_a_name(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(b"?")
    with pytest.raises(UsageError, match=f"--name.*{NAME}"):
        store.import_file(tmp_path / "other.pth")


def test_import_refuses_another_kind_of_file(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / "toy.onnx").write_bytes(b"?")
    with pytest.raises(UsageError, match="is kept as"):
        store.import_file(tmp_path / "toy.onnx", NAME)


def test_import_replaces_another_file_only_by_force(store: WeightsStore, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / f"{content.decode()}.pth").write_bytes(content)
    store.import_file(tmp_path / "one.pth", NAME)
    store.import_file(tmp_path / "one.pth", NAME)
    with pytest.raises(WeightsError, match="--force"):
        store.import_file(tmp_path / "two.pth", NAME)
    assert store.import_file(tmp_path / "two.pth", NAME, force=True) == store.find(NAME)


def test_imported_file_that_changed_is_damaged(store: WeightsStore, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"own values")
    path = store.import_file(tmp_path / FILE).path
    path.write_bytes(b"own valuez")
    assert [status.state for status in store.verify()] == [State.DAMAGED]
    with pytest.raises(WeightsError, match="was imported with"):
        store.find(NAME)


def test_file_in_a_read_only_folder_without_record_is_found(store: WeightsStore) -> None:
    store.folder.mkdir()
    (store.folder / FILE).write_bytes(b"laid here by hand")
    store.folder.chmod(0o555)
    try:
        assert not store.find(NAME).official
    finally:
        store.folder.chmod(0o755)
    assert in_folder(store) == {FILE}


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    real: Callable[[Path], str] = HashMemory.sha256.__globals__["sha256_of"]
    monkeypatch.setattr("cluster.filehash.sha256_of", lambda path: (hashed.append(path), real(path))[1])
    memory = tmp_path / "cache" / "hashes.json"
    file = tmp_path / FILE
    file.write_bytes(b"one")
    first = HashMemory(memory).sha256(file)
    assert HashMemory(memory).sha256(file) == first
    assert len(hashed) == 1
    file.write_bytes(b"longer")
    assert HashMemory(memory).sha256(file) != first


@pytest.mark.parametrize("content", [None, b"", b"[1", b'{"a": 1}'], ids=["a folder", "empty", "cut off", "other"])
def test_broken_memory_of_hashes_costs_nothing_but_time(tmp_path: Path, content: bytes | None) -> None:
    memory = tmp_path / "hashes.json"
    if content is None:
        memory.mkdir()
    else:
        memory.write_bytes(content)
    file = tmp_path / FILE
    file.write_bytes(b"one")
    assert HashMemory(memory).sha256(file) == hashlib.sha256(b"one").hexdigest()


def test_verify_reads_the_bytes_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * len(CONTENT))
    stat = (tmp_path / FILE).stat()
    memory = HashMemory(tmp_path / "hashes.json")
    store = WeightsStore(tmp_path, memory, toy_registry())
    before = store.find(NAME).sha256
    (tmp_path / FILE).write_bytes(b"y" * len(CONTENT))
    os.utime(tmp_path / FILE, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a change that size and time do not show
    (status,) = store.verify()
    assert status.stored is not None
    assert status.stored.sha256 != before


# --- the package's own registry


def test_official_registry_has_what_the_models_need() -> None:
    assert all(official_registry()[name] for name in weights_of_models())
    assert not official_registry()["rvm-resnet50"].licence.settled


def test_every_registered_checkpoint_is_fetched_or_got_by_hand() -> None:
    for entry in official_registry():
        assert entry.urls or entry.by_hand, entry.name
        assert not any("drive.google.com" in url for url in entry.urls), entry.name
    forbidding = {entry.name for entry in official_registry() if not entry.licence.commercial}
    assert forbidding == {"e2fgvi", "e2fgvi-hq", "propainter", "propainter-flow"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"urls": ()}, "either urls or by_hand"),
        ({"by_hand": ByHand(page="https://a.example", steps="download it")}, "either urls or by_hand"),
        ({"md5": "0" * 32}, "whose sha256 is not known"),
        ({"sha256": None}, "pins count"),
        ({"pins": 0}, "pins count"),
        ({"file": "toy.exe"}, "file"),
        ({"urls": ("http://a.example/toy.pth",)}, "https"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        toy_entry(**changes)


def test_registry_with_a_name_twice_is_refused() -> None:
    (entry,) = toy_registry()
    with pytest.raises(ValueError, match="share a name"):
        Registry((entry, entry))


def test_folder_comes_from_the_environment(tmp_path: Path) -> None:
    assert default_folder({"TROUPE_WEIGHTS": "w", "XDG_CACHE_HOME": "/c"}) == Path("w")
    assert default_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "troupe" / "weights"
    assert default_folder({}) == Path.home() / ".cache" / "troupe" / "weights"


def test_reference_weights_are_usable_where_they_lie(shared: Path, tmp_path: Path) -> None:
    store = WeightsStore(shared / "weights", HashMemory(tmp_path / "hashes.json"))
    compact = store.find("realesr-animevideov3")
    assert not compact.official
    assert store.missing(["realesr-animevideov3", "selfie-segmentation", "rvm-resnet50"]) == ("rvm-resnet50",)
    copied = WeightsStore(tmp_path / "own")
    assert not copied.import_file(compact.path).official
    assert copied.find("realesr-animevideov3").sha256 == compact.sha256
