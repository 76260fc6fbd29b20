"""`troupe weights`: what it prints and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from actors.catalogue import weights_of_models
from cli.weights import app
from tests.cluster.file_server import FileServer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TROUPE_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "store"


def test_list_shows_what_is_missing_and_every_unsettled_licence(store: Path) -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert "rvm-mobilenetv3" in result.stdout
    assert "never answered" in result.stdout
    assert not store.exists()


def test_list_json_has_state_size_and_licence(store: Path) -> None:
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert listed["store"] == str(store)
    by_name = {weight["name"]: weight for weight in listed["weights"]}
    assert by_name["realesr-animevideov3"]["state"] == "missing"
    assert by_name["realesr-animevideov3"]["bytes"] == 2_504_012
    assert by_name["rvm-resnet50"]["bytes"] is None
    assert by_name["rvm-resnet50"]["licence"]["settled"] is False


def test_import_says_that_the_file_is_unofficial(store: Path, tmp_path: Path) -> None:
    (tmp_path / "realesr-animevideov3.pth").write_bytes(b"own")
    result = CliRunner().invoke(app, ["import", str(tmp_path / "realesr-animevideov3.pth")])
    assert result.exit_code == 0
    assert "unofficial" in result.stdout
    listed = CliRunner().invoke(app, ["list"])
    assert "unofficial" in listed.stdout
    assert (store / "realesr-animevideov3.pth").read_bytes() == b"own"


def test_verify_fails_when_an_imported_file_changed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "own.pth").write_bytes(b"own")
    CliRunner().invoke(app, ["import", str(tmp_path / "own.pth"), "--name", "rvm-resnet50"])
    assert CliRunner().invoke(app, ["verify"]).exit_code == 0
    (store / "rvm_resnet50.pth").write_bytes(b"owm")
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "damaged" in result.stdout


def test_list_parts_what_models_use_from_what_none_uses_yet(store: Path) -> None:
    used, unused = CliRunner().invoke(app, ["list"]).stdout.split("of networks that no model uses yet")
    assert "rvm-resnet50" in used
    assert "xmem" in unused
    assert "only a browser gets u2net" in unused
    assert "--accept-licence NAME" in unused
    assert not store.exists()


def test_fetch_by_hand_and_without_an_accepted_licence_say_what_to_do(store: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "e2fgvi-hq", "propainter", "--json"])
    assert result.exit_code == 1
    failed = json.loads(result.stdout)["failed"]
    assert "troupe weights import E2FGVI-HQ-CVPR22.pth --name e2fgvi-hq" in failed["e2fgvi-hq"]
    assert "--accept-licence S-Lab-1.0" in failed["propainter"]
    with FileServer(b"x", statuses=[404]) as server:
        accept = ["--accept-licence", "S-Lab-1.0"]
        CliRunner().invoke(app, ["fetch", "propainter", *accept, "--mirror", server.mirror])
    assert [asked.path for asked in server.asked] == ["/gh/sczhou/ProPainter/releases/download/v0.1.0/ProPainter.pth"]
    assert not list(store.glob("*.pth"))


def test_fetch_says_that_nobody_published_the_hash(store: Path) -> None:
    with FileServer(b"weights") as server:
        result = CliRunner().invoke(app, ["fetch", "gma-things", "--mirror", server.mirror])
    assert result.exit_code == 0
    assert "unverified: nobody published its sha256" in result.stdout
    assert "unverified" in CliRunner().invoke(app, ["verify"]).stdout
    assert (store / "gma-things.pth.json").exists()


def test_all_is_what_the_models_use(store: Path) -> None:
    with FileServer(b"", statuses=[404] * 20) as server:
        result = CliRunner().invoke(app, ["fetch", "--all", "--mirror", server.mirror, "--json"])
    assert set(json.loads(result.stdout)["failed"]) == set(weights_of_models())
    assert not list(store.glob("*.pth"))


def test_fetch_that_fails_goes_on_with_the_next_and_exits_1(store: Path) -> None:
    with FileServer(b"not weights", statuses=[404]) as server:
        arguments = ["fetch", "realesr-animevideov3", "rvm-resnet50", "--mirror", server.mirror, "--json"]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert len(server.asked) == 2
    assert set(json.loads(result.stdout)["failed"]) == {"realesr-animevideov3", "rvm-resnet50"}
    assert "never answered" in result.stderr
    assert not list(store.glob("*.part"))


def test_mirror_comes_from_the_environment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer(b"", statuses=[404]) as server:
        monkeypatch.setenv("TROUPE_WEIGHTS_MIRROR", server.mirror)
        assert CliRunner().invoke(app, ["fetch", "rvm-resnet50"]).exit_code == 1
    assert len(server.asked) == 1
    assert not list(store.glob("*.pth"))


@pytest.mark.parametrize(
    "arguments",
    [["fetch"], ["fetch", "--all", "rvm-resnet50"], ["fetch", "no-such"], ["import", "absent.pth"], ["no-command"]],
)
@pytest.mark.usefixtures("store")
def test_bad_usage_exits_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2
