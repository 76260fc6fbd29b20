"""The documents say what the code does: commands, options, configuration keys, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.core import TyperGroup

from actors.catalogue import CARDS
from cli.main import app
from cluster.config import (
    BatchSettings,
    Config,
    EncodeSettings,
    GovernorSettings,
    LimitSettings,
    PinSettings,
    Preset,
    TroupeSettings,
    load_config,
)
from cluster.registry import official_registry
from cluster.service_settings import HttpSettings, ServiceSettings
from serve.api import create_app
from serve.desk import Desk

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SECTIONS: dict[str, type[BaseModel]] = {
    "A pin": PinSettings,
    "The HTTP service": HttpSettings,
    "troupe.batch": BatchSettings,
    "troupe.encode": EncodeSettings,
    "troupe.limits": LimitSettings,
    "troupe.governor": GovernorSettings,
    "troupe.service": ServiceSettings,
    "troupe.presets": Preset,
}


def blocks(text: str) -> list[str]:
    """The shell code blocks of a document."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, list[str]]]:
    """Every `troupe` command of the documents, with the words after `troupe`."""
    found = []
    for document in DOCUMENTS:
        for line in "".join(blocks(document.read_text(encoding="utf-8"))).splitlines():
            words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            if words[:1] == ["troupe"]:
                found.append((f"{document.name}: {line}", words[1:]))
            elif words[:3] == ["ray", "job", "submit"]:
                entry = words[words.index("--") + 1 :]
                assert entry[:3] == ["python", "-m", "jobs.restage"], line
                found.append((f"{document.name}: {line}", ["restage", *entry[3:]]))
    return found


def tables(section: str) -> dict[str, list[str]]:
    """The rows of a section's table in docs/configuration.md: cells by key, without their backticks."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (body,) = [p for p in part if p.startswith(f"{section}\n")]
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*$", body, re.M)
    ]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize(("where", "words"), commands(), ids=[where for where, _ in commands()])
def test_documented_command_is_one_that_the_program_takes(where: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    # Not `click.Group`: newer Typers bring a click of their own, of which nothing is an instance of that.
    assert isinstance(command, TyperGroup)
    while isinstance(command, TyperGroup):
        found = command.commands.get(words[0])
        assert found is not None, f"{where}: no command {words[0]}"
        command, words = found, words[1:]
    # Parsing alone: unknown options, missing arguments and impossible values are usage errors.
    command.make_context(command.name, list(words), resilient_parsing=False)


def test_documents_show_commands() -> None:
    assert len(commands()) >= 20


def test_both_readmes_have_the_same_code_blocks() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    assert blocks(english) == blocks(chinese)


def test_both_readmes_have_the_same_sections_and_links() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for pattern in (r"^(#+) ", r"^\|([-|]+)\|$", r"\]\((docs/[^)]+)\)"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
        path = (document.parent / target) if target else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_no_folder_of_the_machine_they_were_written_on(document: Path) -> None:
    assert re.findall(r"(?<![\w.~])/(?:home|root|work|Users)/\S*", document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("section", "model"), SECTIONS.items(), ids=SECTIONS)
def test_documented_keys_are_those_of_the_configuration(section: str, model: type[BaseModel]) -> None:
    assert set(tables(section)) == set(model.model_fields)


@pytest.mark.parametrize(
    ("section", "model"), [item for item in SECTIONS.items() if item[0] != "troupe.presets"], ids=lambda item: str(item)
)
def test_documented_defaults_are_those_of_the_configuration(section: str, model: type[BaseModel]) -> None:
    for key, field in model.model_fields.items():
        default = (
            "required" if field.is_required() else {(): "none", "": "empty"}.get(field.default, str(field.default))
        )
        if isinstance(field.default, BaseModel):
            default = "see below"
        elif isinstance(field.default, tuple) and field.default:
            default = ", ".join(map(str, field.default))
        documented = tables(section)[key][0]
        assert documented == default or float(documented) == float(default), key


def test_documented_presets_are_those_of_the_configuration() -> None:
    rows = tables("troupe.presets")
    for column, preset in enumerate(("draft", "balanced", "quality")):
        documented = {key: row[column] for key, row in rows.items()}
        assert documented == {key: str(value) for key, value in TroupeSettings().presets[preset].model_dump().items()}


def test_shipped_configuration_is_the_defaults() -> None:
    shipped = load_config(ROOT / "ray-config.yaml")
    assert shipped.model_copy(update={"path": None}) == Config()


def test_shipped_configuration_is_a_valid_serve_file() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    document = yaml.safe_load((ROOT / "ray-config.yaml").read_text(encoding="utf-8"))
    deployed = schema.ServeDeploySchema.model_validate(document)
    names = [*(pin.name for pin in Config().pins), Config().service]
    assert [application.name for application in deployed.applications] == names


def _no_desk() -> AbstractAsyncContextManager[Desk]:
    raise AssertionError("the application is looked at, not started")


def routes() -> set[str]:
    """`METHOD /path` of everything that the HTTP service answers."""
    found = create_app(_no_desk, max_requests=1).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in found.items() for method in methods}


def codes() -> dict[str, set[int]]:
    """Every `code` that the sources of the HTTP service say, with its statuses (none where they are not beside it)."""
    found: dict[str, set[int]] = {}
    for path in (ROOT / "serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for code, status in _said(node):
                found.setdefault(code, set()).update({status} if status else ())
    return found


def _said(node: ast.AST) -> Iterator[tuple[str, int]]:
    match node:
        case ast.Call(func=ast.Name(id="Problem"), args=[ast.Constant(int(status)), ast.Constant(str(code)), *_]):
            yield code, status
        case ast.Call(func=ast.Name(id="busy"), args=[ast.Constant(str(code)), *_], keywords=[]):
            yield code, 429
        case ast.Call(func=ast.Name(id="Places"), args=[_, ast.Constant(str(code)), *_]):
            yield code, 429
        # The table of errors in `problems`, and its codes of the web server's own statuses.
        case ast.Tuple(elts=[ast.Name(), ast.Constant(int(status)), ast.Constant(str(code))]) if status >= 400:
            yield code, status
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                match key, value:
                    case ast.Constant(int(status)), ast.Constant(str(code)) if re.fullmatch("[a-z_]+", code):
                        yield code, status
                    case ast.Constant("code"), ast.Constant(str(code)):
                        yield code, 0


def documented_codes() -> dict[str, set[int]]:
    """The table of codes in docs/http.md."""
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    return {code: {int(status)} for code, status in re.findall(r"^\| `([a-z_]+)` \| ([0-9]{3}) \|", text, re.MULTILINE)}


def test_every_route_is_documented_with_a_curl_and_nothing_else_is() -> None:
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^### ([A-Z]+ /\S+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    # The question for a result's size alone stands beside the download.
    assert set(parts) == routes() - {"HEAD /v1/tasks/{task_id}/result"}
    assert [route for route, part in parts.items() if "curl " not in part] == []


def test_every_code_of_a_problem_is_documented_with_its_status() -> None:
    said = codes()
    assert len(said) >= 40
    documented = documented_codes()
    assert set(documented) == set(said)
    assert {code: statuses for code, statuses in said.items() if statuses and statuses != documented[code]} == {}


def test_every_field_of_a_task_is_documented() -> None:
    schemas = create_app(_no_desk, max_requests=1).openapi()
    body = schemas["paths"]["/v1/tasks"]["post"]["requestBody"]["content"]
    fields = {name for content in body.values() for name in content["schema"]["properties"]}
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []


def test_both_readmes_and_the_service_begin_with_the_same_task() -> None:
    first = [
        next(block for block in blocks((ROOT / name).read_text(encoding="utf-8")) if "/v1/tasks" in block)
        for name in ("README.md", "README.zh-CN.md", "docs/http.md")
    ]
    assert first[0] == first[1] == first[2]
    assert "troupe up" in first[0]


def test_every_model_and_its_weights_are_documented() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [name for name in CARDS if f"`{name}`" not in text] == []
    assert [entry.file for entry in official_registry() if f"`{entry.file}`" not in text] == []


def test_pins_of_the_configuration_host_every_resident_model() -> None:
    hosted = {model for pin in Config().pins for model in pin.models}
    assert hosted == {card.name for card in CARDS.values() if card.resident}
