"""A run all of whose parts lie outside the package: environment by --import, trainer, features, card and reader by entry points of an installed package, evaluator by its file; on a real Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import mucd_ray
from mucd_ray import plugins
from mucd_ray.certify.file.certificate import read_certificate, verify
from mucd_ray.cli import main
from mucd_ray.data.environments.features import load_features_of
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.service.runs.driver import training_units
from mucd_ray.service.storage.store import RunStore
from tests.foreign_plugins import install_documented

OWN = str(Path(__file__).parents[2] / "own_environment.py")
SCORE = """
import numpy as np

def right(policy, seed):
    places = np.array([[place, 10 - place] for place in range(10)], np.float32)
    return float((policy.act(places) == 1).mean())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package of docs/plugins.md: on the path here and of processes that are started."""
    site, before = install_documented(tmp_path_factory.mktemp("plugins")), os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", f"{site}:{before or Path(mucd_ray.__file__).parents[1]}")
        yield site
    for name in [name for name in sys.modules if name.startswith("corridor_plugins")]:
        del sys.modules[name]
    plugins._loaded.clear()


@pytest.fixture(scope="module")
def walks(installed, recordings, tmp_path_factory):
    """A recording in the package's own format, read by its reader; the environment is found by its card."""
    file, rng = tmp_path_factory.mktemp("log") / "log.walks", np.random.default_rng(0)
    assert main(["card", "Corridor-v0", "--import", OWN]) == 0  # registers it
    environment, lines = gym.make("Corridor-v0", disable_env_checker=True), []
    for seed in range(40):
        observation, ends, cut = environment.reset(seed=seed)[0], False, False
        walk = {"observations": [observation.tolist()], "actions": [], "rewards": []}
        while not (ends or cut):
            action = int(rng.random() < 0.7)
            observation, reward, ends, cut, _ = environment.step(action)
            for name, value in (("observations", observation.tolist()), ("actions", action), ("rewards", reward)):
                walk[name].append(value)
        lines.append(json.dumps(walk | {"ends": ends}))
    file.write_text("\n".join(lines))
    assert main(["import", str(file), "--format", "walks", "--dataset", "corridor/walks-v0", "--environment", "Corridor-v0", "--import", OWN]) == 0
    return "corridor/walks-v0"


def on_ray(*arguments) -> str:
    """The command line by itself, whose Ray has the package on its path."""
    done = subprocess.run([sys.executable, "-m", "mucd_ray.cli", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_everything_outside_of_the_package_works_on_ray(installed, walks, tmp_path, capfd):
    (tmp_path / "score.py").write_text(SCORE)
    run, score = tmp_path / "run", f"{tmp_path}/score.py:right"
    said = ["--import", OWN, "--evaluator", score]
    parts = [*said, "--score-range", "0,1", "--trainer", "ridge", "--features", "way", "--mechanism", "bag", "--bag-size", "2", "--held-out", "2", "--states", "8", "--storage", str(run)]
    summary, certificate = json.loads(on_ray("run", walks, *parts, "--instances", "20", "--json")), read_certificate(run / "certificate.json")
    assert verify(certificate) == [] and summary["unpoisoned_mean"] > 0.9 and certificate["context"]["failures"] == 0
    used = {kind: plugins.find(kind, name) for kind, name in (("trainer", "ridge"), ("card", "corridor"), ("features", "way"), ("format", "walks"))}
    assert certificate["context"]["plugins"] == [vars(used[kind]) for kind in ("trainer", "card", "features", "format")]
    claim, assumptions = " ".join(certificate["claim"]), " ".join(certificate["assumptions"])
    assert all(plugin.sha256 in assumptions for plugin in used.values()) and all(used[kind].sha256 in claim for kind in ("trainer", "features"))
    assert 'the plug-in "ridge"' in claim and "the features way of a plug-in" in claim and "The trainer is given features of observations in their place" in assumptions
    assert "as they were recorded" not in claim + assumptions and certificate["inputs"]["evaluator"]["name"] == score

    # The learner is given features, of each observation by itself.
    settings, dataset = RunStore.open(str(run)).settings(), load_dataset(walks)
    load_features_of(settings.card)
    bag = training_units(settings, dataset)
    place, left = dataset.observations[5]
    assert bag.observations.shape == (len(dataset), 2) and np.allclose(bag.observations[5], [left / max(place + left, 1), 1 if left < 2 else -1])

    policy = mucd_ray.load(str(run), features="way")
    assert (policy.act(dataset.observations[:20]) == 1).mean() > 0.9 and policy.radius(dataset.observations[:20]).max() >= 1
    for features, words in ((None, "imported only on your word: add --features way"), ("others", "add --features way")):
        with pytest.raises(MucdError, match=words):
            mucd_ray.load(str(run), features=features)

    # A run folder is an attacker's file, and a plug-in may have changed, if only in another file of its package.
    def refused(*arguments) -> str:
        capfd.readouterr()
        assert main(list(arguments)) == 2
        error = capfd.readouterr().err
        assert error.startswith("mucd: error: ") and error.count("\n") == 1
        return error

    grow = ["grow", str(run), "--instances", "24", *said]
    assert "imported only on your word: add --features way" in refused(*grow) and "started only on your word: add --trainer ridge" in refused(*grow, "--features", "way")
    assert "--trainer 'bc' is not that of" in refused(*grow, "--features", "way", "--trainer", "bc")
    (installed / "corridor_plugins" / "more.txt").write_text("")
    try:
        assert "the features way are not those with which the run began" in refused(*grow, "--features", "way")
        assert "features way of corridor-plugins 1.0 has changed since this process imported it" in refused("run", walks, *parts, "--instances", "24")
    finally:
        (installed / "corridor_plugins" / "more.txt").unlink()


@pytest.mark.slow
def test_growing_serving_and_voting_with_plugins(installed, walks, tmp_path, capfd):
    """A card that is named, a trainer alone, and features with noise: what a run began with is said again, but for a card that is found by the environment's id."""
    run, said = str(tmp_path / "ridge"), ["--import", OWN]
    parts = ["run", walks, *said, "--trainer", "ridge", "--card", "corridor", "--mechanism", "bag", "--bag-size", "2", "--held-out", "2", "--states", "5", "--storage", run]
    on_ray(*parts, "--instances", "20")
    assert "features" not in str(read_certificate(f"{run}/certificate.json")["context"]["plugins"]) and '"instances": 24' in on_ray("grow", run, *said, "--trainer", "ridge", "--instances", "24", "--json")
    (installed / "corridor_plugins" / "more.txt").write_text("")
    try:
        assert main(["grow", run, *said, "--trainer", "ridge", "--instances", "30"]) == 2
        assert "began with the plug-in trainer ridge of corridor-plugins 1.0, which has other files now" in capfd.readouterr().err
        done = subprocess.run([sys.executable, "-m", "mucd_ray.cli", *parts, "--instances", "30"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and "holds a run with other settings" in done.stderr and done.stderr.count("\n") == 1
    finally:
        (installed / "corridor_plugins" / "more.txt").unlink()

    run, said = str(tmp_path / "noise"), ["--import", OWN, "--features", "way"]
    small = ["--unit", "transition", "--sample-rate", "0.5", "--noise-multiplier", "40", "--steps", "5", "--held-out", "2", "--states", "5", "--storage", run]
    on_ray("run", walks, *said, *small, "--instances", "20")
    certificate = read_certificate(f"{run}/certificate.json")
    assert verify(certificate) == [] and certificate["inputs"]["features"]["name"] == "way" and [plugin["kind"] for plugin in certificate["context"]["plugins"]] == ["card", "features", "format"]
    assert '"instances": 24' in on_ray("grow", run, *said, "--instances", "24", "--json")
    vote = ["certify", run, "--policy", "vote", "--episodes", "1", "--nodes", "5", "--import", OWN]
    capfd.readouterr()
    assert main(vote) == 2 and "add --features way" in capfd.readouterr().err
    assert main([*vote, "--features", "way"]) == 0 and main([*vote, "--features", "way", "--card", "corridor"]) == 0
    assert main([*vote, "--features", "way", "--card", "Nowhere"]) == 2 and "neither a file nor a plug-in" in capfd.readouterr().err
    assert mucd_ray.load(run, features="way").act(load_dataset(walks).observations[:3]).shape == (3,)
