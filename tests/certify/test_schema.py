"""docs/certificate.md names every field of every kind of certificate, with its type, and no others."""

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mucd_ray.certify.confidence.bands import BANDS
from mucd_ray.certify.confidence.looks import LOOKS
from mucd_ray.certify.confidence.means import MEANS
from mucd_ray.certify.file.certificate import FORMAT, make_certificate, make_inputs
from mucd_ray.certify.file.evidence import (
    ACTION_KEYS,
    LEVELS,
    continuous_evidence,
    exact_evidence,
    histogram,
    levels,
    neighbours_evidence,
    scores_evidence,
    votes_evidence,
)
from mucd_ray.certify.file.voted import voted_evidence
from mucd_ray.certify.guarantees import FAMILIES, THREATS
from mucd_ray.certify.planning.goal import GOALS
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.neighbours import METRICS, Neighbours
from mucd_ray.mechanism.outside import Outside
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.plugins import Plugin

TEXT = (Path(__file__).parents[2] / "docs" / "certificate.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| (.*) \|$", re.MULTILINE)
FIELDS = {tuple(re.split(r"\.(?![^<]*>)", path)): kind for path, kind, _ in ROW.findall(TEXT)}
KIND = re.compile(r"(?P<base>\w+)(?P<null> or null)?( \[(?P<shape>[^]]+)\])?( or \[(?P<other>[^]]+)\])?(?P<null_list> or null)?")
BASES = {
    "text": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "whole": lambda value: type(value) is int,
    "real": lambda value: type(value) in (int, float),
    "object": lambda value: isinstance(value, dict),
    "any": lambda value: True,
}
POLICIES, STATES = 100, 3


def run_context():
    """The context of a run, from the function that writes it."""
    about = pytest.importorskip("mucd_ray.service.runs.about")
    learner = pytest.importorskip("mucd_ray.learn.learner")
    baselines = {"non_private": -80.0, "behaviour": -90.0, "best_constant_action": "1", "best_constant_return": -500.0, "trusted": -95.0, "reference": [0]} | {f"{name}_{what}": value for name in ("non_private", "trusted") for what, value in (("failure", "raised"), ("standard_error", 1.5), ("episodes", 176))}
    baselines |= {"returns_recorded": 110, "returns_outside": 3, "observations_outside": 0.2, "observations_outside_feature": 2}
    store = SimpleNamespace(baselines=lambda: baselines, targets=lambda: [100], looks=lambda: [100], states_hash=lambda: "ab")
    settings = SimpleNamespace(
        dataset="acrobot/größe-v0",
        fingerprint="cd",
        units=1000,
        source_key=None,
        trusted=("acrobot/ours-v0", "ef"),
        card=SimpleNamespace(env_id="Acrobot-v1", random_return=-499.0, expert_return=-79.0),
        discount=1.0,
        mechanism=Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0),
        trainer=None,
        to_dict=lambda: {"card": {}, "fit": {"steps": 5}, "learner": asdict(learner.Learner(learning_rate=0.1, algorithm="dqn", constants={"discount": 0.9}))},
        problem=SimpleNamespace(parameter_count=18),
        code="ef",
        imports=("my_envs",),
        plugins=(Plugin(kind="card", name="arm", value="my_envs:arm.json", package="my-envs", version="1.0", sha256="0f" * 32),),
        held_out=16,
        states_sha256=None,
        states_from=None,
        evaluator=None,
        labels_sha256="0f" * 32,
        plays=True,
    )
    return about.context(store, settings) | {"failures": 3, "failures_by_cause": {"died": 3}, "unscored": 2, "unscored_by_cause": {"raised": 2}, "median_action_return": -90.0}


@pytest.fixture(scope="module")
def certificates():
    rng = np.random.default_rng(0)
    base = {
        "mechanism": Mechanism(sample_rate=0.05, noise_multiplier=30.0, clip_norm=0.1, steps=40, normaliser=50.0),
        "units": 1000,
        "radius_cap": 12,
        "returns": rng.normal(-90, 20, POLICIES).clip(-500, 0),
        "return_range": (-500, 0),
        "features": {"source": "raw", "card": "Acrobot-v1", "encoder": None},
    }
    top = np.array([99, 80, 50])
    votes = np.stack([top, POLICIES - top], axis=1)
    values = rng.beta(5, 2, (POLICIES, STATES, 2))
    episode = {"rows": [0], "node": [0], "action": [0], "reward": [-1.0], "next": [0]}
    kinds = [
        {"actions": votes_evidence(votes, reference=[0, 0, 1]), "looks": "anytime", "goal": "return>=0.5@0.005", "condition": "tuned-on-this-dataset"},
        {"actions": scores_evidence(histogram(levels(values, 0, 1)))},
        {"actions": continuous_evidence(histogram(levels(values, 0, 1)), [0, 0], [1, 1]), "threat": "insert"},
        {"returns": [-90.0], "accountant": "published"},
        {"mechanism": Bag(bag_size=10), "actions": votes_evidence(votes), "features": {"source": "encoder", "card": "Acrobot-v1", "encoder": "0f" * 32, "keys": ["camera/front", "place"]}},
        {"mechanism": Bag(draws="poisson", sample_rate=0.01), "threat": "substitute", "features": {"source": "raw", "card": "Acrobot-v1", "encoder": None, "history": 4}},
        {"mechanism": Bag(bag_size=20), "features": {"source": "raw", "card": "Acrobot-v1", "encoder": None, "steps": 4}},
        {"mechanism": Bag(bag_size=20), "features": {"source": "raw", "card": "Acrobot-v1", "encoder": None, "keys": ["action_mask", "observation"], "mask": True}},
        {"mechanism": BagThenNoise(bag_rate=0.02, sample_rate=0.5, noise_multiplier=4.0, clip_norm=0.1, steps=40, normaliser=10.0), "actions": votes_evidence(votes)},
        {"mechanism": Partition(parts=300, spread=3), "actions": votes_evidence(votes), "rule": {"name": "parl", "window": None, "never": 1, "actions": 2, "episodes": [{"seed": 0, "return": -90.0, "votes": [[0] * 300]}]}},
        {"mechanism": Partition(parts=POLICIES), "actions": exact_evidence(votes, [0, 0, 1]), "voted": voted_evidence("exact", 1, -1.0, [votes[:1]], [episode], never=1)},
        {"mechanism": Partition(parts=POLICIES), "actions": exact_evidence(votes), "voted": voted_evidence("rule", 1, -1.0, [np.array([[0, 3]])], [episode], rule={"name": "tparl", "window": 2})},
        {"mechanism": Bag(bag_size=10), "evaluator": Evaluator(name="mine.py:success", sha256="0" * 64, low=-500, high=0)},
        {"mechanism": Bag(bag_size=10), "trainer": Outside(kind="function", name="mine.trainers:clone", sha256="0" * 64)},
        {"mechanism": Bag(bag_size=10), "trainer": Outside(kind="plug-in", name="forest", sha256="0" * 64), "features": {"source": "plug-in", "card": "Acrobot-v1", "encoder": "0f" * 32, "name": "arm"}},
        {"mechanism": Bag(bag_size=10), "trainer": Outside(kind="command", name="python train.py {bag} {out}", sha256="0" * 64, bag_format="parquet")},
        {"mechanism": Neighbours(neighbours=20), "actions": neighbours_evidence(rng.integers(0, 2, (STATES, 40)), 2, [0, 1, 1]), "path_radii": [3] * POLICIES},
        {
            "mechanism": Bag(bag_size=10), "actions": votes_evidence(votes), "returns": [], "return_range": None, "rollouts": 0, "instances": POLICIES,
            "declared": {"observation_shape": [6], "actions": 2, "dimensions": 0, "sha256": "0f" * 32}, "features": {"source": "raw", "card": "no-environment", "encoder": None},
        },
        {
            "mechanism": Bag(bag_size=10), "actions": votes_evidence(np.concatenate([votes] * 3, axis=1), [[0, 0, 1]] * STATES, components=(2, 2, 2)), "returns": [], "return_range": None, "rollouts": 0,
            "instances": POLICIES, "declared": {"observation_shape": [6], "actions": 6, "dimensions": 0, "sha256": "0f" * 32, "components": [2, 2, 2]},
            "features": {"source": "raw", "card": "no-environment", "encoder": None},
        },
    ]
    return [make_certificate(make_inputs(**base | kind), assumptions=["η was chosen before."], context=run_context()) for kind in kinds]


def nodes(value, path=()):
    """(path, value) of every value that has a key."""
    for key, part in value.items() if isinstance(value, dict) else ():
        yield (*path, key), part
        yield from nodes(part, (*path, key))


def fits(path, pattern):
    return len(path) == len(pattern) and all(wanted.startswith("<") or wanted == key for key, wanted in zip(path, pattern, strict=True))


def has_kind(value, kind, sizes):
    kind = KIND.fullmatch(kind)
    assert kind and kind["base"] in BASES, "a type that the document does not explain"
    shapes = [kind[name].split(", ") if kind[name] else [] for name in ("shape", "other")]
    if value is None:
        return bool(kind["null_list"] if shapes[0] else kind["null"])
    return any(has_shape(value, shape, sizes, kind) for shape in (shapes if kind["other"] else shapes[:1]))


def has_shape(value, shape, sizes, kind):
    parts = [value]
    for size in shape:
        if not all(isinstance(part, list) and len(part) == (int(size) if size.isdigit() else sizes.get(size, len(part))) for part in parts):
            return False
        parts = [value for part in parts for value in part]
    return all(BASES[kind["base"]](part) or (part is None and kind["null"]) for part in parts)


def test_every_field_is_documented_with_its_type_and_no_other(certificates):
    found = set()
    for certificate in certificates:
        actions = 6 if "component_radius" in json.dumps(certificate["results"]) else 2
        sizes = {"P": certificate["results"]["instances"], "S": STATES, "A": actions, "d": 2, "D": actions, "C": 3, "K+1": LEVELS + 1}
        for path, value in nodes(certificate):
            documented = [pattern for pattern in FIELDS if fits(path, pattern)]
            # A name goes before a placeholder: `radius` is not a `<scope>`.
            assert documented, f"{'.'.join(path)} is not documented"
            pattern = min(documented, key=lambda pattern: sum(part.startswith("<") for part in pattern))
            assert has_kind(value, FIELDS[pattern], sizes), f"{'.'.join(path)} is not {FIELDS[pattern]}"
            found.add(pattern)
    assert set(FIELDS) == found


def test_every_name_that_a_field_may_have_is_documented():
    names = {FORMAT, *UNITS, *THREATS, *FAMILIES, *BANDS, *LOOKS, *GOALS, *MEANS, *ACTION_KEYS, *METRICS}
    assert not {name for name in names if f"`{name}`" not in TEXT} and f"K = {LEVELS}" in TEXT


def test_the_documents_own_program_gives_the_hash(certificates, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    # Neither white space nor the order of keys nor escapes change it.
    for k, layout in enumerate(({}, {"indent": 1, "ensure_ascii": False}, {"sort_keys": True})):
        (tmp_path / "certificate.json").write_text(json.dumps(certificates[k], **layout), encoding="utf-8")
        done = subprocess.run([sys.executable, "-X", "utf8", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == certificates[k]["sha256"]
