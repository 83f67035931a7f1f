import dataclasses
import json

import pytest

from mucd_ray.cli import main
from mucd_ray.data import recipes
from mucd_ray.data.behaviours import BEHAVIOURS
from mucd_ray.data.minari_io import load_dataset
from mucd_ray.data.recipes import RECIPES, make, recipe_catalogue
from mucd_ray.errors import MucdError


def test_every_behaviour_has_a_recipe_and_every_recipe_a_behaviour():
    assert {recipe.behaviour for recipe in RECIPES.values()} == set(BEHAVIOURS)
    assert all(RECIPES[row["dataset"]].env_id == row["env_id"] for row in recipe_catalogue())


def test_a_recipe_makes_exactly_its_dataset(minari_root):
    recipe = RECIPES["cartpole/mixed-v0"]
    made = make("cartpole/mixed-v0")
    assert made["transitions"] == recipe.size and made["mean_return"] == pytest.approx(recipe.mean_return, abs=0.01)
    assert made["checksum"] == load_dataset("cartpole/mixed-v0").fingerprint() == recipe.checksum == made["declared_checksum"]


def test_continuous_actions_and_another_checksum_are_told(minari_root, monkeypatch):
    recipe = dataclasses.replace(RECIPES["lunarlander/continuous-v0"], transitions=100)
    monkeypatch.setitem(recipes.RECIPES, "lunarlander/continuous-v0", recipe)
    made = make("lunarlander/continuous-v0")
    assert made["declared_checksum"] == recipe.checksum != made["checksum"]
    dataset = load_dataset("lunarlander/continuous-v0")
    assert dataset.actions.shape == (made["transitions"], 2) and dataset.env_kwargs == {"continuous": True}


def test_the_command_line_lists_recipes_makes_them_and_tells_the_checksum(minari_root, monkeypatch, capfd):
    assert main(["record", "--list"]) == 0
    listed = capfd.readouterr().out
    row = next(line.split() for line in listed.splitlines() if line.startswith("cartpole/mixed-v0"))
    assert row[1:5] == ["CartPole-v1", "cartpole-balance", "20,192", "325.7"] and all(name in listed for name in (*RECIPES, *BEHAVIOURS))
    assert main(["record", "--list", "--json"]) == 0
    assert {entry["dataset"] for entry in json.loads(capfd.readouterr().out)["recipes"]} == set(RECIPES)
    assert main(["record", "--recipe", "cartpole/mixed-v0"]) == 0
    captured = capfd.readouterr()
    assert f"checksum {RECIPES['cartpole/mixed-v0'].checksum} (as declared)" in captured.out and "byte for byte" not in captured.err
    monkeypatch.setitem(recipes.RECIPES, "cartpole/mixed-v0", dataclasses.replace(RECIPES["cartpole/mixed-v0"], transitions=10))
    assert main(["record", "--recipe", "cartpole/mixed-v0", "--overwrite", "--json"]) == 0
    captured = capfd.readouterr()
    assert "not byte for byte the declared one" in captured.err and json.loads(captured.out)["checksum"] != RECIPES["cartpole/mixed-v0"].checksum
    assert main(["record", "CartPole-v1", "--recipe", "cartpole/mixed-v0"]) == 2
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
