"""The documents say what the code does: commands, options, configuration keys, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from pydantic import BaseModel

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

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SECTIONS: dict[str, type[BaseModel]] = {
    "A pin": PinSettings,
    "troupe.batch": BatchSettings,
    "troupe.encode": EncodeSettings,
    "troupe.limits": LimitSettings,
    "troupe.governor": GovernorSettings,
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
            words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
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
    context = click.Context(command, info_name="troupe")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
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
        default = "required" if field.is_required() else "none" if field.default == () else str(field.default)
        if isinstance(field.default, BaseModel):
            default = "see below"
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
    assert [application.name for application in deployed.applications] == [pin.name for pin in Config().pins]


def test_every_model_and_its_weights_are_documented() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert [name for name in CARDS if f"`{name}`" not in text] == []
    assert [entry.file for entry in official_registry() if f"`{entry.file}`" not in text] == []


def test_pins_of_the_configuration_host_every_resident_model() -> None:
    hosted = {model for pin in Config().pins for model in pin.models}
    assert hosted == {card.name for card in CARDS.values() if card.resident}
