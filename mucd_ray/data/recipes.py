"""Named datasets: everything that determines each one, and what came out when it was made here."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mucd_ray.data.behaviours import BEHAVIOURS
from mucd_ray.data.minari_io import load_dataset
from mucd_ray.data.record import record
from mucd_ray.errors import MucdError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataset that `mucd record --recipe` makes.

    Attributes:
        dataset, behaviour, transitions, seed: arguments of `mucd_ray.data.record.record`, with the behaviour's own noise levels.
        checksum: `OfflineDataset.fingerprint()`; None if it has not been made yet, like the numbers below. Environments that compute in floating
            point may give others on other processors.
        size: its number of transitions, in whole episodes.
        mean_return: over its trajectories.
        seconds: to record and write it, with one core of a 2-core x86-64 machine.
        megabytes: of its files.
    """

    dataset: str
    behaviour: str
    transitions: int
    seed: int = 2026
    checksum: str | None = None
    size: int | None = None
    mean_return: float | None = None
    seconds: float | None = None
    megabytes: float | None = None

    @property
    def env_id(self) -> str:
        return BEHAVIOURS[self.behaviour].env_id


RECIPES = {
    recipe.dataset: recipe
    for recipe in (
        Recipe(dataset="cartpole/mixed-v0", behaviour="cartpole-balance", transitions=20_000),
        Recipe(dataset="acrobot/mixed-v0", behaviour="acrobot-swing", transitions=20_000),
        Recipe(dataset="pendulum/mixed-v0", behaviour="pendulum-swing", transitions=20_000),
        Recipe(dataset="lunarlander/mixed-v0", behaviour="lunarlander-land", transitions=50_000),
        Recipe(dataset="lunarlander/continuous-v0", behaviour="lunarlander-continuous-land", transitions=50_000),
        Recipe(dataset="invertedpendulum/mixed-v0", behaviour="invertedpendulum-balance", transitions=50_000),
        Recipe(dataset="halfcheetah/mixed-v0", behaviour="halfcheetah-run", transitions=50_000),
        Recipe(dataset="freeway/mixed-v0", behaviour="freeway-lookahead", transitions=50_000),
        Recipe(dataset="breakout/mixed-v0", behaviour="breakout-follow", transitions=50_000),
        Recipe(dataset="highway/mixed-v0", behaviour="highway-drive", transitions=10_000),
        Recipe(dataset="freeway/large-v0", behaviour="freeway-lookahead", transitions=2_000_000),
        Recipe(dataset="breakout/large-v0", behaviour="breakout-follow", transitions=2_000_000),
        Recipe(dataset="halfcheetah/large-v0", behaviour="halfcheetah-run", transitions=2_000_000),
    )
}


def make(dataset_id: str, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None) -> dict:
    """Record the named dataset.

    Returns:
        What `record` returns, and "checksum", "declared_checksum" (None if none is declared) and "megabytes".
    Raises:
        MucdError: no recipe of this name, or what `record` raises.
    """
    if dataset_id not in RECIPES:
        raise MucdError(f"no recipe makes a dataset {dataset_id!r}: use one of {', '.join(RECIPES)}")
    recipe = RECIPES[dataset_id]
    summary = record(recipe.env_id, recipe.behaviour, recipe.transitions, recipe.seed, recipe.dataset, overwrite=overwrite, progress=progress)
    size = sum(file.stat().st_size for file in Path(summary["path"]).rglob("*") if file.is_file())
    return summary | {"checksum": load_dataset(dataset_id).fingerprint(), "declared_checksum": recipe.checksum, "megabytes": round(size / 1e6, 1)}


def recipe_catalogue() -> list[dict]:
    """What can be made, for listings: the fields of every recipe and its env_id."""
    return [asdict(recipe) | {"env_id": recipe.env_id} for recipe in RECIPES.values()]
