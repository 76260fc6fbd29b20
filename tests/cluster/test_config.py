"""The one configuration: the shipped file says what the defaults say, and what is wrong is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from actors.catalogue import CARDS
from cluster.config import BatchSettings, Config, PinSettings, lane_count, load_config
from cluster.errors import UsageError

SHIPPED = Path(__file__).resolve().parents[2] / "ray-config.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_shipped_file_and_defaults_say_the_same() -> None:
    shipped = load_config(SHIPPED)
    assert shipped.model_copy(update={"path": None}) == Config()


@pytest.mark.parametrize(("layout", "pins"), [("together", ["restage"]), ("apart", ["upscale", "matte"])])
def test_shipped_file_is_a_valid_serve_config_in_both_layouts_a_line_apart(
    tmp_path: Path, layout: str, pins: list[str]
) -> None:
    from ray.serve.schema import ServeDeploySchema

    text = re.sub(r"^applications: \*together\b", f"applications: *{layout}", SHIPPED.read_text(), flags=re.MULTILINE)
    config = load_config(write(tmp_path, text))
    assert [pin.name for pin in config.pins] == pins
    assert [app.name for app in ServeDeploySchema(**yaml.safe_load(text)).applications] == [*pins, "service"]
    assert {model for pin in config.pins for model in pin.models} == set(Config().pins[0].models)


def test_every_resident_model_has_a_home_and_every_pin_known_models() -> None:
    config = Config()
    for card in CARDS.values():
        if card.resident:
            assert card.name in config.pin_of(card.name).models
    assert {model for pin in config.pins for model in pin.models} <= set(CARDS)


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()
    (tmp_path / "ray-config.yaml").write_text("troupe: {batch: {window: 5}}")
    assert load_config().troupe.batch.window == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("troupe: {batch: {windw: 3}}", "batch.windw: Extra inputs are not permitted"),
        ("troupe: {batch: {window: none}}", "batch.window: Input should be a valid integer"),
        ("troupe: {encode: {threads: 0}}", "encode.threads: Input should be greater than or equal to 1"),
        ("applications: [{import_path: actors.pin:build, args: {name: a, models: [x], num_gpus: 2}}]", "num_gpus"),
        ("applications: [{import_path: actors.pin:build, args: {name: a, models: [x], preload: [y]}}]", "preload"),
        ("applications: {name: a}", "applications must be a list"),
        ("[1, 2]", "holds no settings"),
        ("{", "is not YAML"),
    ],
)
def test_wrong_file_is_refused_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(write(tmp_path, text))
    assert said in str(refused.value)
    assert str(tmp_path / "config.yaml") in str(refused.value)


def test_model_in_two_pins_is_refused() -> None:
    pins = (PinSettings(name="a", models=("x",)), PinSettings(name="b", models=("x",)))
    with pytest.raises(ValidationError, match="model x appears more than once"):
        Config(pins=pins)


def test_model_without_a_pin_is_told_with_the_place_to_add_it() -> None:
    with pytest.raises(UsageError, match="no pin hosts the model nobody; add it to the `models`"):
        Config().pin_of("nobody")


@pytest.mark.parametrize(
    ("cpus", "replicas", "lanes"), [(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 2), (64, 4, 16), (8, 4, 4)]
)
def test_one_lane_for_four_cores_and_one_for_each_replica(cpus: float, replicas: int, lanes: int) -> None:
    assert lane_count(BatchSettings(), cpus, replicas) == lanes
    assert lane_count(BatchSettings(lanes=3), cpus, replicas) == 3
