"""`troupe tokens new`: a token that the service then knows, and a file that only its owner reads."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from serve.edge.auth import Tokens


def new(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tokens", "new", *arguments])


def test_entry_that_is_printed_is_one_that_the_service_takes(tmp_path: Path) -> None:
    token, _, *entry = new("studio").stdout.splitlines()
    path = tmp_path / "tokens.yaml"
    path.write_text("\n".join(entry))
    principal = Tokens.load(path, {}).match(token.encode())
    assert principal is not None
    assert principal.name == "studio"
    assert token not in path.read_text()


def test_file_gets_one_entry_after_the_other_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    first = json.loads(new("studio", "--file", str(path), "--json").stdout)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text(path.read_text().rstrip("\n") + "  # no line end")
    path.chmod(0o644)
    second = new("phone", "--file", str(path)).stdout.splitlines()[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = Tokens.load(path, {})
    assert [known.match(each.encode()).name for each in (first["token"], second)] == ["studio", "phone"]  # type: ignore[union-attr]
    assert "# no line end" in path.read_text()


@pytest.mark.parametrize("text", ["a: 1\n", "[]\n", "- [\n", "- {name: studio, token_env: A}\n", "\xff"])
def test_file_that_cannot_take_it_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_bytes(text.encode("latin-1"))
    result = new("studio", "--file", str(path))
    assert result.exit_code == 2, result.output
    assert path.read_bytes() == text.encode("latin-1")
    assert "troupe_" not in result.stdout, "a token that nobody knows is not shown"


@pytest.mark.parametrize("name", ["", "two words", "-", "a" * 65, "a\nb"])
def test_name_that_is_none_is_bad_usage(name: str) -> None:
    assert new("--", name).exit_code == 2


def test_file_in_no_folder_is_bad_usage(tmp_path: Path) -> None:
    assert new("studio", "--file", str(tmp_path / "none" / "tokens.yaml")).exit_code == 2


@pytest.mark.parametrize("name", ["1", "true", "1e5"])
def test_name_that_yaml_would_read_as_another_type_stays_a_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokens.yaml"
    token = new(name, "--file", str(path)).stdout.splitlines()[0]
    assert yaml.safe_load(path.read_text())[0]["name"] == name
    assert Tokens.load(path, {}).match(token.encode()) is not None
