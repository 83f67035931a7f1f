import dataclasses
import json
import subprocess
import sys

import pytest

from mucd_ray.cli import main
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording import recipes
from mucd_ray.data.recording.behaviours import BEHAVIOURS
from mucd_ray.data.recording.recipes import RECIPES, Recipe, make, recipe_catalogue
from mucd_ray.errors import MucdError

CHECKSUM, RETURN = "97d132919111c792466b3903c92c74a9b6a5cc290547c0f753ad078736fd87af", 20.0


def test_every_behaviour_has_a_recipe_and_every_recipe_a_behaviour():
    assert {recipe.behaviour for recipe in RECIPES.values()} == set(BEHAVIOURS)
    assert all(RECIPES[row["dataset"]].env_id == row["env_id"] for row in recipe_catalogue())


@pytest.fixture
def short(monkeypatch):
    """One episode of an emulator that computes in whole numbers: the same bytes on every processor."""
    recipe = Recipe(dataset="freeway/mixed-v0", behaviour="freeway-lookahead", transitions=1, size=2048, checksum=CHECKSUM, mean_return=RETURN)
    monkeypatch.setitem(recipes.RECIPES, recipe.dataset, recipe)
    return recipe


def test_continuous_actions_and_another_checksum_are_told(minari_root, monkeypatch):
    recipe = dataclasses.replace(RECIPES["lunarlander/continuous-v0"], transitions=100)
    monkeypatch.setitem(recipes.RECIPES, "lunarlander/continuous-v0", recipe)
    made = make("lunarlander/continuous-v0")
    assert made["declared_checksum"] == recipe.checksum != made["checksum"]
    dataset = load_dataset("lunarlander/continuous-v0")
    assert dataset.actions.shape == (made["transitions"], 2) and dataset.env_kwargs == {"continuous": True}


def test_the_command_line_lists_recipes():
    listed = subprocess.run([sys.executable, "-m", "mucd_ray.cli", "record", "--list"], capture_output=True, text=True, check=True).stdout
    row = next(line.split() for line in listed.splitlines() if line.startswith("cartpole/mixed-v0"))
    assert row[1:5] == ["CartPole-v1", "cartpole-balance", "20,192", "325.7"] and all(name in listed for name in (*RECIPES, *BEHAVIOURS))


def test_the_command_line_makes_exactly_the_dataset_and_tells_the_checksum(minari_root, short, monkeypatch, capfd):
    assert main(["record", "--list", "--json"]) == 0
    assert {entry["dataset"] for entry in json.loads(capfd.readouterr().out)["recipes"]} == set(RECIPES)
    assert main(["record", "--recipe", short.dataset]) == 0
    captured = capfd.readouterr()
    assert f"mean return {RETURN:.2f}" in captured.out and f"checksum {CHECKSUM} (as declared)" in captured.out and "byte for byte" not in captured.err
    dataset = load_dataset(short.dataset)
    assert len(dataset) == short.size and dataset.fingerprint() == CHECKSUM
    monkeypatch.setitem(recipes.RECIPES, "cartpole/mixed-v0", dataclasses.replace(RECIPES["cartpole/mixed-v0"], transitions=10))
    assert main(["record", "--recipe", "cartpole/mixed-v0", "--json"]) == 0
    captured = capfd.readouterr()
    assert "not byte for byte the declared one" in captured.err and json.loads(captured.out)["checksum"] != json.loads(captured.out)["declared_checksum"]
    assert main(["record", "CartPole-v1", "--recipe", short.dataset]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_unknown_recipes_are_named(minari_root):
    with pytest.raises(MucdError, match="no recipe makes a dataset 'pong-v0': use one of cartpole/mixed-v0"):
        make("pong-v0")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.seconds is not None and recipe.seconds < 100])
def test_recipes_are_as_declared(minari_root, name):
    """Sizes and mean returns; checksums too where the environment computes in whole numbers."""
    recipe, made = RECIPES[name], make(name)
    assert made["mean_return"] == pytest.approx(recipe.mean_return, rel=0.1)
    if recipe.env_id.startswith("ALE/"):
        assert made["transitions"] == recipe.size and made["checksum"] == recipe.checksum
