"""Every format that `mucd import` reads, from a file as its own writer makes it to a dataset, traps included."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow.parquet
import pytest
from minari_datasets import ACTIONS, SPACES, create
from own_spaces import Rooms

from mucd_ray.data.environments.own import UserEnvironment, card_of
from mucd_ray.data.formats.column_map import parse, resolved
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.data.formats.registry import FORMATS
from mucd_ray.data.importing import ImportOptions, import_dataset, load_source
from mucd_ray.errors import MucdError

sys.path.insert(0, str(Path(__file__).parents[1]))
import foreign_files as foreign

DISCRETE = ImportOptions(actions="3")
MAP = ImportOptions(columns=foreign.COLUMNS)


def dropped_last(made):
    """What is left where an episode that did not terminate lacks its final observation."""
    return [episode if episode["terminated"] else {name: value[:-1] if name != "terminated" else value for name, value in episode.items()} for episode in made]


def check(report, made, *, final=True, rewards=True, order=(0, 1, 2), terminated=True):
    dataset = load_dataset(report["dataset_id"])
    assert report["transitions"] == len(dataset) == sum(len(episode["rewards"]) for episode in made) and report["trajectories"] == dataset.trajectories == len(made)
    for number, (start, stop) in enumerate(zip(dataset.trajectory_starts[:-1], dataset.trajectory_starts[1:])):
        episode, part = made[number], slice(start, stop)
        length = stop - start
        np.testing.assert_array_equal(dataset.observations[part], episode["observations"][:-1][:, list(order)])
        after = episode["observations"][1:][:, list(order)].copy()
        if not final:
            after[-1] = dataset.observations[stop - 1] if episode["terminated"] or final is None else after[-1]
        np.testing.assert_array_equal(dataset.next_observations[part], after)
        np.testing.assert_array_equal(dataset.actions[part], episode["actions"])
        np.testing.assert_array_equal(dataset.rewards[part], episode["rewards"] if rewards else np.zeros(length))
        ended = episode["terminated"] and terminated
        np.testing.assert_array_equal(dataset.terminations[part], (np.arange(length) == length - 1) & ended)
        np.testing.assert_array_equal(dataset.truncations[part], (np.arange(length) == length - 1) & (not ended))
    return dataset


def imported(path, options=ImportOptions(), name="mine/a-v0"):
    return import_dataset(path, name, options)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot(minari_root, tmp_path, version):
    """One row an action and no final observation: the last one stands for it. Statistics beside the data, which are no JSON here, are not opened."""
    made = foreign.episodes(12 if version == "v2.1" else 3)
    report = imported(foreign.lerobot(tmp_path / "a", made, version))
    assert report["format"] == "lerobot" and report["sources"] == {"task_index": 1}
    dataset = check(report, made, final=None)
    assert isinstance(dataset.action_space, gym.spaces.Box) and not np.isfinite(dataset.action_space.low).any() and not report["spaces"]["actions_declared"]
    report = imported(foreign.lerobot(tmp_path / "b", made, version, reward=False, done=False), name="mine/b-v0")
    check(report, made, final=None, rewards=False, terminated=False)
    assert any("all are 0" in text for text in report["findings"])


@pytest.mark.parametrize("columns", [False, True])
def test_d4rl(minari_root, tmp_path, columns):
    made = foreign.episodes()
    check(imported(foreign.d4rl(tmp_path, made, columns=columns)), made)


def test_d4rl_without_next_observations(minari_root, tmp_path):
    made = foreign.episodes()
    report = imported(foreign.d4rl(tmp_path, made, next_observations=False))
    check(report, dropped_last(made), final=False)
    assert any("left out" in text for text in report["findings"])


@pytest.mark.parametrize("at_a_time", [1, 12, 1 << 22])
def test_d4rl_ends_that_nothing_marks(minari_root, tmp_path, monkeypatch, at_a_time):
    """As in medium-replay: the next observation shows them, or --max-episode-steps, or they stay one episode and the report says so."""
    monkeypatch.setattr("mucd_ray.data.formats.episodes.ENTRIES_AT_A_TIME", at_a_time)
    made = foreign.episodes(lengths=[4, 4, 4])
    report = imported(foreign.d4rl(tmp_path, made, timeouts=False))
    check(report, made)
    assert any("1 ends are not marked" in text for text in report["findings"])
    path = foreign.d4rl(tmp_path, made, timeouts=False, next_observations=False)
    check(imported(path, ImportOptions(max_episode_steps=4), "mine/b-v0"), dropped_last(made), final=False)
    report = imported(path, name="mine/c-v0")
    assert report["trajectories"] == 2 and report["lengths"]["greatest"] == 8 and any("give --max-episode-steps" in text for text in report["findings"])


@pytest.mark.parametrize("done", [False, True])
def test_ends_that_are_only_counted_move_together_and_the_report_says_so(minari_root, tmp_path, done):
    """Without one row of 24 every later trajectory is another one, up to the next end that is marked."""
    rng, path = np.random.default_rng(0), tmp_path / "log.csv"
    rows = [f"{a},{b},{int(a > 0)},{int(row == 11)}" for row, (a, b) in enumerate(rng.normal(size=(24, 2)).tolist())]
    columns = "obs=x*,action=act" + (",terminated=done" if done else "")

    def digests(kept, **options):
        path.write_text("\n".join(["x1,x2,act,done", *kept]))
        report = import_dataset(path, "mine/a-v0", ImportOptions(columns=columns, actions="2", **options), overwrite=True)
        return load_dataset("mine/a-v0").trajectory_digests(), [text for text in report["findings"] if "set by counting" in text]

    (before, notes), (after, _) = digests(rows, max_episode_steps=4), digests(rows[1:], max_episode_steps=4)
    most = 3 if done else 6
    assert len(before) == 6 and len(set(before) - set(after)) == most
    assert len(notes) == 1 and f"{4 if done else 5} ends are set by counting 4 steps alone" in notes[0] and f"changes up to {most} of 6 trajectories" in notes[0]
    if done:
        assert digests(rows)[1] == [] == digests(rows, max_episode_steps=12)[1]


def test_robomimic(minari_root, tmp_path):
    """Numerical order of 12 demos; keys side by side, sorted (object before robot0_eef_pos); masks are keys; images are skipped; what env_args names is text."""
    made = foreign.episodes(12)
    path = foreign.robomimic(tmp_path, made)
    report = imported(path)
    dataset = check(report, made)
    assert dataset.action_space == gym.spaces.Box(-1, 1, (2,), np.float32) and dataset.env_id is None
    assert report["sources"] == {"mask": 2} and load_dataset("mine/a-v0", source_key="mask").sources.tolist() == [0] + [1] * 11
    assert any("recorded in os:system" in text for text in report["findings"])
    check(imported(path, ImportOptions(observation_keys=("robot0_eef_pos", "object")), "mine/b-v0"), made, order=(1, 2, 0))
    without = foreign.robomimic(tmp_path, made, next_obs=False, mask=False)
    check(imported(without, name="mine/c-v0"), made, final=None)


def test_d3rlpy(minari_root, tmp_path):
    made = foreign.episodes()
    report = imported(foreign.d3rlpy2(tmp_path, made))
    assert report["format"] == "d3rlpy"
    check(report, dropped_last(made), final=False)
    check(imported(foreign.d3rlpy1(tmp_path, made), name="mine/b-v0"), dropped_last(made), final=False)
    discrete = foreign.episodes(discrete=True)
    report = imported(foreign.d3rlpy2(tmp_path, discrete), DISCRETE, "mine/c-v0")
    check(report, dropped_last(discrete), final=False)
    assert report["spaces"]["actions"] == "Discrete(3)" and report["spaces"]["actions_declared"]


def test_d3rlpy_with_tuples_and_without_ends(minari_root, tmp_path):
    made = foreign.episodes()
    with h5py.File(path := foreign.d3rlpy2(tmp_path, made), "r+") as file:
        for number in range(3):
            whole = file[f"observations_{number}"][()]
            del file[f"observations_{number}"]
            file[f"observations_{number}_0"], file[f"observations_{number}_1"] = whole[:, :1], whole[:, 1:, None]
    check(imported(path), dropped_last(made), final=False)
    with h5py.File(path, "r+") as file:
        del file["observations_1_1"]
        file["observations_1_1"] = np.zeros((2, 2), np.float32)
    with pytest.raises(MucdError, match="observations_1_1 has 2 rows, observations_1_0 4"):
        imported(path, name="mine/b-v0")
    with h5py.File(path := foreign.d3rlpy1(tmp_path, made), "r+") as file:
        del file["episode_terminals"]
    report = imported(path, name="mine/c-v0")
    assert report["trajectories"] == 2 and any("no episode_terminals" in text and "give --max-episode-steps" in text for text in report["findings"])


def test_ogbench(minari_root, tmp_path):
    made = foreign.episodes()
    report = imported(foreign.ogbench(tmp_path, made))
    assert report["format"] == "ogbench"
    check(report, made, rewards=False, terminated=False)
    report = imported(foreign.ogbench(tmp_path, made, rewards=True), name="mine/b-v0")
    check(report, made, terminated=False)
    assert any("masks are 0 inside 1 trajectories" in text for text in report["findings"])


@pytest.mark.parametrize("discrete", [False, True])
def test_rllib(minari_root, tmp_path, discrete):
    """Rows in no order in two files; episodes come in the order in which they first appear."""
    made = foreign.episodes(discrete=discrete)
    report = imported(foreign.rllib(tmp_path, made))
    dataset = load_dataset("mine/a-v0")
    first = dataset.observations[dataset.trajectory_starts[:-1]]
    order = [next(number for number, episode in enumerate(made) if (episode["observations"][0] == row).all()) for row in first]
    check(report, [made[number] for number in order])
    assert report["format"] == "rllib" and sorted(order) == [0, 1, 2]


def test_rlds(minari_root, tmp_path):
    """T + 1 steps, of which the last has invalid action and reward; images are skipped; metadata of an episode is its key."""
    made = foreign.episodes()
    report = imported(foreign.rlds(tmp_path, made))
    check(report, made)
    assert report["format"] == "rlds" and report["sources"] == {"operator": 2} and any("only the split train" in text for text in report["findings"])
    check(imported(tmp_path / "arm/1.0.0", ImportOptions(observation_keys=("state", "effort")), "mine/b-v0"), made, order=(1, 2, 0))


def test_dqn_replay(minari_root, tmp_path):
    made = foreign.episodes(discrete=True)
    report = imported(foreign.dqn_replay(tmp_path, made), DISCRETE)
    dataset = load_dataset("mine/a-v0", source_key="checkpoint")
    assert dataset.observations.shape == (12, 2, 2) and dataset.observations.dtype == np.uint8 and dataset.observations.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(dataset.actions, np.concatenate([episode["actions"] for episode in made]))
    assert report["terminated"] == 3 and dataset.sources.tolist() == [0, 0, 0] and any("9 rows of zeros" in text for text in report["findings"])


@pytest.mark.parametrize("make", [foreign.csv_log, foreign.parquet_log])
@pytest.mark.parametrize("discrete", [False, True])
def test_logs(minari_root, tmp_path, make, discrete):
    made = foreign.episodes(discrete=discrete)
    report = imported(make(tmp_path, made), MAP)
    dataset = check(report, [episode | {"observations": episode["observations"].astype(np.float64)} for episode in made])
    assert report["sources"] == {"who": 2} and load_dataset("mine/a-v0", source_key="who").sources.tolist() == [0, 1, 0]
    assert dataset.action_space == (gym.spaces.Discrete(3) if discrete else gym.spaces.Box(-np.inf, np.inf, (2,), np.float32))


def test_npz(minari_root, tmp_path):
    made = foreign.episodes()
    path = foreign.npz(tmp_path, made)
    report = imported(path)
    assert report["format"] == "npz"
    check(report, made)
    check(imported(path, ImportOptions(columns="obs=observations,action=actions,reward=rewards,next_obs=next_observations,terminated=terminals"), "mine/b-v0"), made)


@pytest.mark.parametrize(("data_format", "space"), [("hdf5", "box"), ("hdf5", "images"), ("hdf5", "states"), ("arrow", "box"), ("parquet", "images")])
def test_minari(minari_root, data_format, space):
    """The same arrays, whatever they are stored in: its fingerprint is that of the dataset itself."""
    create("first-v0", SPACES[space], ACTIONS["discrete"], data_format)
    report = imported(minari_root / "first-v0")
    assert load_dataset("mine/a-v0").fingerprint() == load_dataset("first-v0").fingerprint() and report["format"] == "minari"
    assert load_dataset("mine/a-v0").action_space == ACTIONS["discrete"] and any("JPEG" in text for text in report["findings"]) == (space == "images")


def test_what_was_chosen_is_in_the_metadata(minari_root, tmp_path):
    """And Minari itself reads the dataset."""
    import hashlib

    path = foreign.csv_log(tmp_path, foreign.episodes(discrete=True))
    imported(path, ImportOptions(columns=foreign.COLUMNS))
    values = json.loads((minari_root / "mine/a-v0/data/metadata.json").read_text())["mucd_import"]
    assert values["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and values["options"] == {"columns": foreign.COLUMNS} and values["format"] == "csv"
    assert minari.load_dataset("mine/a-v0").total_steps == 12 and not load_dataset("mine/a-v0").actions_declared
    assert not imported(minari_root / "mine/a-v0", name="mine/b-v0")["spaces"]["actions_declared"] and not load_dataset("mine/b-v0").actions_declared


def test_every_format_is_recognised_by_itself_alone(tmp_path):
    made = foreign.episodes(discrete=False)
    files = {
        "lerobot": foreign.lerobot(tmp_path / "l", made), "rlds": foreign.rlds(tmp_path, made), "rllib": foreign.rllib(tmp_path, made), "robomimic": foreign.robomimic(tmp_path, made),
        "d3rlpy": foreign.d3rlpy2(tmp_path, made), "d4rl": foreign.d4rl(tmp_path, made), "ogbench": foreign.ogbench(tmp_path, made), "npz": foreign.npz(tmp_path, made),
        "dqn-replay": foreign.dqn_replay(tmp_path, foreign.episodes(discrete=True)),
    }
    assert {name: load_source(path).format for name, path in files.items()} == {name: name for name in files}
    assert {format.name for format in FORMATS} == {*files, "csv", "parquet", "minari"}


def test_the_column_map():
    names = ["f10", "f2", "act", "r", "ep", "x y"]
    found = resolved(parse("obs=f*:x y,action=act,reward=r,episode=ep"), names)
    assert found == {"obs": ["f2", "f10", "x y"], "action": ["act"], "reward": ["r"], "episode": ["ep"]}
    assert resolved(None, ["obs_10", "obs_9", "action", "reward", "episode_id", "done"])["obs"] == ["obs_9", "obs_10"]
    for text, message in [("obs", "is not ROLE"), ("obs=a,obs=b", "each once"), ("obs=f2", "which columns are action"), ("obs=,action=a", "is not ROLE"), ("cup=a", "is not ROLE")]:
        with pytest.raises(MucdError, match=message):
            parse(text)
    for text, message in [("obs=q*,action=act", "no such column"), ("obs=f2:act,action=act", "two things"), ("obs=f2,action=act,reward=f*", "must be one column")]:
        with pytest.raises(MucdError, match=message):
            resolved(parse(text), names)
    with pytest.raises(MucdError, match="which of its columns f10, f2, act, r, ep, x y are the obs"):
        resolved(None, names)


def test_a_declared_environment_gives_the_spaces(minari_root, tmp_path):
    """Doubles of a text are what was observed in floats; a file's own word makes nothing."""
    made = foreign.episodes(discrete=True)
    for episode in made:
        episode["observations"] = np.concatenate([episode["observations"], episode["observations"][:, :1]], axis=1)
        episode["actions"] = episode["actions"] % 2
    path, flat = tmp_path / "cart.npz", foreign.rows(made)
    np.savez(path, **{name: flat[name].astype(np.float64) if "observations" in name else flat[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")})
    report = imported(path, ImportOptions(environment="CartPole-v1"))
    dataset = load_dataset("mine/a-v0")
    assert dataset.env_id == "CartPole-v1" and dataset.observations.dtype == np.float32 and dataset.action_space == gym.spaces.Discrete(2) and report["environment"] == "CartPole-v1"
    np.testing.assert_array_equal(dataset.observations, flat["observations"])
    from mucd_ray.data.environments.cards import card_for

    card_for("CartPole-v1").check(dataset)
    undeclared = imported(path, name="mine/b-v0")
    assert undeclared["spaces"]["actions"] == "Discrete(2)" and not undeclared["spaces"]["actions_declared"]
    card_for("CartPole-v1").check(load_dataset("mine/b-v0"))
    flat["actions"][0] = 2
    np.savez(path, **{name: flat[name] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")})
    imported(path, name="mine/c-v0")
    with pytest.raises(MucdError, match="1 of 12 actions are outside Discrete"):
        card_for("CartPole-v1").check(load_dataset("mine/c-v0"))
    with pytest.raises(MucdError, match="1 of 3 trajectories are invalid"):
        imported(path, ImportOptions(environment="CartPole-v1"), "mine/d-v0")


def test_actions_of_several_components(minari_root, tmp_path):
    """Declared by their numbers of values, or by the environment's space, whose lowest value becomes 0; one that is in none is its trajectory's fault."""
    made = [episode | {"actions": np.random.default_rng(1).integers(0, 30, (len(episode["rewards"]), 2))} for episode in foreign.episodes()]
    made[0]["actions"][0] = 29, 0
    as_read = [episode | {"observations": episode["observations"].astype(np.float64)} for episode in made]
    path = foreign.csv_log(tmp_path, made)
    dataset = check(imported(path, ImportOptions(columns=foreign.COLUMNS, actions="30x30")), as_read)
    assert dataset.action_space == gym.spaces.MultiDiscrete([30, 30]) and dataset.declared_actions is None and dataset.actions_declared
    few = foreign.csv_log(tmp_path, [episode | {"actions": episode["actions"] % 3} for episode in made])
    assert imported(few, ImportOptions(columns=foreign.COLUMNS, actions="3x3"), "mine/b-v0") and load_dataset("mine/b-v0").action_space == gym.spaces.Discrete(9)
    path = foreign.csv_log(tmp_path, made)
    for actions, message in (("29x30", "of 3 trajectories are invalid"), ("30x30x30", "3 of 3 trajectories are invalid"), ("30x5000", "more than 4,096 values in all"), ("30x", "--actions '30x'"), ("0x30", "--actions '0x30'")):
        with pytest.raises(MucdError, match=message):
            imported(path, ImportOptions(columns=foreign.COLUMNS, actions=actions), "mine/c-v0")
    arrays = {"observations": np.zeros((6, 2), np.float32), "actions": np.array([[-5, 5, 0]] * 6), "rewards": np.zeros(6), "episode": np.repeat([0, 1], 3)}
    np.savez(tmp_path / "levers.npz", **arrays)
    there = ImportOptions(environment="own_spaces/Levers-v0", imports=("own_spaces",))
    assert imported(tmp_path / "levers.npz", there, "mine/d-v0")["spaces"]["actions"] == "MultiDiscrete([11 11 11])"
    dataset = load_dataset("mine/d-v0")
    card_of("own_spaces/Levers-v0", UserEnvironment(return_range=(0, 10)), scaled=False).check(dataset)
    assert dataset.actions.tolist() == [[0, 10, 5]] * 6
    arrays["actions"][4, 1] = 6
    np.savez(tmp_path / "levers.npz", **arrays)
    with pytest.raises(MucdError, match=r"1 of 2 trajectories are invalid \(episode 1"):
        imported(tmp_path / "levers.npz", there, "mine/e-v0")


class Levers(Rooms):
    """The number of a cell; two whole numbers as the action."""

    observation_space = gym.spaces.Discrete(9, start=-4)

    def _seen(self):
        return int(np.rint(2 * (self.target - self.place)))


def test_any_registered_environment_gives_its_spaces(minari_root, tmp_path):
    """No card is shipped of it. Actions of several whole numbers become the numbers of their combinations; one that is in none is its trajectory's fault."""
    gym.register("Levers-v0", entry_point=Levers, max_episode_steps=10)
    path, rng = tmp_path / "levers.npz", np.random.default_rng(1)
    arrays = {"observations": rng.integers(-4, 5, 12), "actions": np.stack([rng.integers(1, 4, 12), rng.integers(0, 2, 12)], 1), "rewards": rng.normal(size=12), "episode": np.repeat([0, 1, 2], 4)}
    np.savez(path, **arrays)
    report = imported(path, ImportOptions(environment="Levers-v0", imports=("own_spaces",)))
    dataset = load_dataset("mine/a-v0")
    assert report["spaces"] == {"observations": "Discrete(9, start=-4)", "actions": "Discrete(6)", "actions_declared": True} and dataset.env_id == "Levers-v0"
    np.testing.assert_array_equal(dataset.actions, 2 * (arrays["actions"][:, 0] - 1) + arrays["actions"][:, 1])
    card_of("Levers-v0", UserEnvironment(return_range=(0, 10)), scaled=False).one_hot().check(dataset)
    arrays["actions"][5] = 0, 0
    np.savez(path, **arrays)
    with pytest.raises(MucdError, match=r"1 of 3 trajectories are invalid \(episode 1 \(rows 4 to 7\): "):
        imported(path, ImportOptions(environment="Levers-v0"), "mine/b-v0")
    assert imported(path, ImportOptions(environment="Levers-v0", drop_invalid=True), "mine/b-v0")["trajectories"] == 2
    for options, message in [({"make_kwargs": {"length": 3}}, "about the environment that --environment ID names"), ({"environment": "Levers-v0", "imports": ("no such",)}, "no name of a module"), ({"environment": "Levers-v0", "make_kwargs": {"x": 1}}, "cannot be made")]:
        with pytest.raises(MucdError, match=message):
            imported(path, ImportOptions(**options), "mine/c-v0")


@pytest.mark.parametrize("between", [",", ", ", ";", "\t"])
def test_csv_by_what_stands_between_the_names(minari_root, tmp_path, between):
    made = foreign.episodes(discrete=True)
    path = foreign.csv_log(tmp_path, made)
    path.write_text(path.read_text().replace(",", between))
    check(imported(path, MAP), [episode | {"observations": episode["observations"].astype(np.float64)} for episode in made])


def test_a_log_in_several_parquet_files(minari_root, tmp_path):
    """In the order of the numbers in their names; one with other columns is refused."""
    made = foreign.episodes(discrete=True)
    whole = pyarrow.parquet.read_table(foreign.parquet_log(tmp_path, made))
    folder = tmp_path / "log"
    folder.mkdir()
    for number in (2, 10):
        pyarrow.parquet.write_table(whole.slice(0, 5) if number == 2 else whole.slice(5), folder / f"part-{number}.parquet")
    report = imported(folder, MAP)
    check(report, [episode | {"observations": episode["observations"].astype(np.float64)} for episode in made])
    assert report["format"] == "parquet" and report["files"] == 2
    pyarrow.parquet.write_table(whole.drop_columns("who"), folder / "part-11.parquet")
    with pytest.raises(MucdError, match="files with different columns"):
        imported(folder, MAP, "mine/b-v0")
