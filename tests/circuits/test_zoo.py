"""The bundled models: they are as good as they say, and their scripts make such models."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import transformers
from click.testing import CliRunner

from wiremap.circuits import zoo
from wiremap.circuits.tasks.builtin import find_task
from wiremap.edges import Model
from wiremap.edges.model.loading import bundled_models, bundled_path

NAMES = tuple(zoo.RECIPES)


def test_every_recipe_is_bundled() -> None:
    assert sorted(bundled_models()) == sorted(NAMES)


def test_together_they_are_small() -> None:
    files = [file for name in NAMES for file in bundled_path(name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8e6


@pytest.mark.parametrize("name", NAMES)
def test_they_do_their_tasks_on_held_out_prompts(name: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(bundled_path(name)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_path(name))
    told = json.loads((bundled_path(name) / "training.json").read_text())
    assert list(told["held_out_accuracy"]) == list(zoo.RECIPES[name].weights)
    for task, accuracy in told["held_out_accuracy"].items():
        assert accuracy >= 0.99
        assert zoo.accuracy(model, tokenizer, find_task(task)) == pytest.approx(accuracy, abs=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_the_one_they_were_trained_by(name: str) -> None:
    recipe = zoo.RECIPES[name]
    told = json.loads((bundled_path(name) / "training.json").read_text())["recipe"]
    assert told.pop("tasks") == recipe.weights
    assert told == {key: getattr(recipe, key) for key in told}
    config = json.loads((bundled_path(name) / "config.json").read_text())
    assert {key: config[key] for key in recipe.config} == recipe.config


@pytest.mark.parametrize("name", NAMES)
def test_training_writes_a_model_that_loads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(zoo.RECIPES[name], steps=3, batch_size=4)
    monkeypatch.setattr(zoo, "RECIPES", {name: short})
    monkeypatch.setattr(zoo, "accuracy", partial(zoo.accuracy, n_prompts=20))
    result = CliRunner().invoke(zoo.main, ["train", name, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    model = Model.load(str(tmp_path / name))
    assert model.graph == Model.load(name).graph
    files = {file.name for file in (tmp_path / name).iterdir()}
    assert files == {file.name for file in bundled_path(name).iterdir()}
    tokenizer = "tokenizer.json"
    assert (tmp_path / name / tokenizer).read_text() == (bundled_path(name) / tokenizer).read_text()
