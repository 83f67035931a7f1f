"""Named datasets: everything that determines each one, and what came out when it was made here."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.recording.behaviours import BEHAVIOURS
from mucd_ray.data.recording.record import record
from mucd_ray.errors import MucdError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A dataset that `mucd record --recipe` makes.

    Attributes:
        dataset, behaviour, transitions, seed, frames: arguments of `mucd_ray.data.recording.record.record`, with the behaviour's own noise levels.
        checksum: `OfflineDataset.fingerprint()`; None if it has not been made yet, like the numbers below. Environments that compute in floating
            point may give others on other processors.
        size: its number of transitions, in whole episodes.
        mean_return: over its trajectories.
        seconds: of one x86-64 core, to record, write and check it.
        megabytes: of its files.
    """

    dataset: str
    behaviour: str
    transitions: int
    seed: int = 2026
    frames: bool = False
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
        Recipe(
            dataset="cartpole/mixed-v0", behaviour="cartpole-balance", transitions=20_000, size=20_192,
            checksum="8ee97e300128e83b5c73bc22843905db3eac8a885cd097d95ca25ce07ee02ca1", mean_return=325.68, seconds=1, megabytes=1.5,
        ),
        Recipe(
            dataset="acrobot/mixed-v0", behaviour="acrobot-swing", transitions=20_000, size=20_086,
            checksum="69087939d7a0db9d91228d74bdb0a49652f8089ffb7866d31dbfe9a68c2ad8e4", mean_return=-202.10, seconds=1, megabytes=2.2,
        ),
        Recipe(
            dataset="pendulum/mixed-v0", behaviour="pendulum-swing", transitions=20_000, size=20_000,
            checksum="a5aa1059d67a661c417b1d7d3555ad078d23bb7ffff849e8588a965c17ee1538", mean_return=-255.63, seconds=1, megabytes=2.0,
        ),
        Recipe(
            dataset="lunarlander/mixed-v0", behaviour="lunarlander-land", transitions=50_000, size=50_064,
            checksum="7a640d4b1f4cf5ec577e14ef7c2928ef4e5436bcb6290c38b3579174e4945131", mean_return=34.81, seconds=4, megabytes=6.0,
        ),
        Recipe(
            dataset="lunarlander/continuous-v0", behaviour="lunarlander-continuous-land", transitions=50_000, size=50_301,
            checksum="79f951119c200803bb9f0728ae55170bb9acf0bded2b2db2e78f5ab96ee7a531", mean_return=196.37, seconds=6, megabytes=4.3,
        ),
        Recipe(
            dataset="invertedpendulum/mixed-v0", behaviour="invertedpendulum-balance", transitions=50_000, size=50_703,
            checksum="4fff037d1e3f43ea34c955d048a08113e73781363977329afb04bb1031616e28", mean_return=641.41, seconds=3, megabytes=3.5,
        ),
        Recipe(
            dataset="halfcheetah/mixed-v0", behaviour="halfcheetah-run", transitions=50_000, size=50_000,
            checksum="0d8cb46d315e43982d2c35d0916219e4872876e658e81a88dfd5e303066e610f", mean_return=2954.72, seconds=11, megabytes=10.5,
        ),
        Recipe(
            dataset="hopper/mixed-v0", behaviour="hopper-hop", transitions=50_000, size=50_903,
            checksum="6ec3793c7bd46f3f1fd2b1419d8251e2a41f337b72134a73ca9019bcc828e95e", mean_return=1689.29, seconds=6, megabytes=7.1,
        ),
        Recipe(
            dataset="freeway/mixed-v0", behaviour="freeway-lookahead", transitions=50_000, size=51_200,
            checksum="93cc02737b012c59c86bce7faf4210e40ae5001c99dfb49fb9c98da864cdb5c3", mean_return=17.84, seconds=35, megabytes=7.8,
        ),
        Recipe(
            dataset="breakout/mixed-v0", behaviour="breakout-follow", transitions=50_000, size=50_192,
            checksum="3bd7221a9764022d5fcebe83d74ba20b16ab2f349f4dfad697f076665ed49a7c", mean_return=35.09, seconds=22, megabytes=8.3,
        ),
        Recipe(
            dataset="highway/mixed-v0", behaviour="highway-drive", transitions=10_000, size=10_022,
            checksum="a51fc14fb8eb10f21d2ecafe1639a724d0e8f464fc3fff7f535b0d767b052e48", mean_return=14.58, seconds=300, megabytes=9.4,
        ),
        Recipe(
            dataset="freeway/frames-v0", behaviour="freeway-lookahead", transitions=10_000, frames=True, size=10_240,
            checksum="c0bcf79554ebfd7c96716d27490882a02d74ef8e23d737ecb1a253ad1de106c5", mean_return=17.80, seconds=12, megabytes=80.1,
        ),
        Recipe(
            dataset="breakout/frames-v0", behaviour="breakout-follow", transitions=10_000, frames=True, size=10_275,
            checksum="bcbd0dac3a7d9da0ec3222e0a818112e1b2ed48c2a62226a86226349ebd73dab", mean_return=35.93, seconds=7, megabytes=78.2,
        ),
        Recipe(
            dataset="freeway/large-v0", behaviour="freeway-lookahead", transitions=2_000_000, size=2_000_896,
            checksum="2e41f6db09b6940818864e9d7ba5637d21d2d43611a91a25adaf80b3e19d7e29", mean_return=17.53, seconds=1510, megabytes=306.6,
        ),
        Recipe(
            dataset="breakout/large-v0", behaviour="breakout-follow", transitions=2_000_000, size=2_000_228,
            checksum="969d7187277e7884a35d5cab63c8b416ee6c93bc2336053542d5fc75c6c20e6b", mean_return=39.30, seconds=1080, megabytes=330.0,
        ),
        Recipe(
            dataset="halfcheetah/large-v0", behaviour="halfcheetah-run", transitions=2_000_000, size=2_000_000,
            checksum="d14110f589ed69b95cbf1ba297253eff11714ac27a3e28818143491586ed05d0", mean_return=2894.08, seconds=395, megabytes=418.0,
        ),
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
    summary = record(
        recipe.env_id, recipe.behaviour, recipe.transitions, recipe.seed, recipe.dataset, frames=recipe.frames, overwrite=overwrite, progress=progress
    )
    size = sum(file.stat().st_size for file in Path(summary["path"]).rglob("*") if file.is_file())
    return summary | {"checksum": load_dataset(dataset_id).fingerprint(), "declared_checksum": recipe.checksum, "megabytes": round(size / 1e6, 1)}


def recipe_catalogue() -> list[dict]:
    """What can be made, for listings: the fields of every recipe, its env_id and the environment's arguments."""
    return [asdict(recipe) | {"env_id": recipe.env_id, "make_kwargs": BEHAVIOURS[recipe.behaviour].make_kwargs or {}} for recipe in RECIPES.values()]
