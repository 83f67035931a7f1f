"""The Ray actors: trainers make blocks, the coordinator adds them up, the certifier turns sums into bounds.

All of them hold nothing that cannot be rebuilt from the run folder, so any of them may die at any time.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import ray

from mucd_ray.certify.certificate import make_certificate, make_inputs
from mucd_ray.certify.evidence import LEVELS, continuous_evidence, histogram, scores_evidence, votes_evidence
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.policy import radius_keeping, return_band
from mucd_ray.errors import MucdError
from mucd_ray.learn.units import ARRAYS, Units
from mucd_ray.service.settings import check_code
from mucd_ray.service.store import RunStore

# Coordinator and certifier take no GPU and must not see one.
NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}}


def data_hash(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@ray.remote(max_restarts=0, max_task_retries=0)
class Trainer:
    """Trains blocks of instances on its assigned device and commits them to the run folder."""

    def __init__(self, run: str, expected_hash: str, *arrays):
        self.store = RunStore.open(run)
        self.settings, self.secret = self.store.settings(), self.store.secret()
        check_code(self.settings)
        # Zero-copy views of the object store: an in-place write by anybody would change them for everybody.
        self.units = Units(unit=self.settings.mechanism.unit, **dict(zip(ARRAYS, arrays, strict=True)))
        self.expected_hash = expected_hash
        self._check_data()
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"

    def train(self, instances: range) -> str:
        """Train, vote, roll out, commit; returns the block's name."""
        from mucd_ray.service.work import train_and_evaluate

        block = train_and_evaluate(self.settings, self.secret, self.units, self.store.states(), instances, self.device)
        self._check_data()
        return self.store.commit(block)

    def choose_states(self) -> np.ndarray:
        from mucd_ray.service.work import choose_states

        return choose_states(self.settings, self.secret, self.units, self.device)

    def baselines(self) -> dict:
        from mucd_ray.service.work import baselines

        return baselines(self.settings, self.units, self.store.states())

    def _check_data(self):
        if data_hash(self.units.arrays().values()) != self.expected_hash:
            raise MucdError("the shared training data was changed while the run was going on: start the run again")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the instances did: votes int [S, A], histogram of levels int [S, D, LEVELS + 1], returns [P] in the order of instances."""

    votes: np.ndarray
    histogram: np.ndarray
    returns: np.ndarray


class Tally:
    """Votes, levels and returns of the stored instances 0..instances-1, each counted once."""

    def __init__(self, store: RunStore, instances: int):
        self.store, self.settings, self.instances = store, store.settings(), instances
        self.returns = {}
        self.votes = np.zeros((self.settings.states if self.settings.actions else 0, self.settings.actions), np.int64)
        self.histogram = np.zeros((self.settings.states, self.settings.columns, LEVELS + 1), np.int64)
        for name in store.names():
            self.add(name)

    def add(self, name: str) -> int:
        """Count a stored block; adding it again changes nothing. Returns the number of instances counted."""
        block = self.store.read(name)
        if block is not None:
            new = [k for k, instance in enumerate(block.instances) if instance < self.instances and instance not in self.returns]
            self.returns |= {block.first + k: float(block.returns[k]) for k in new}
            if new:
                self.histogram += histogram(block.levels[new])
            for action in range(self.settings.actions):
                self.votes[:, action] += (block.actions[new] == action).sum(axis=0)
        return len(self.returns)

    def evidence(self) -> Evidence:
        returns = np.array([self.returns[instance] for instance in sorted(self.returns)])
        return Evidence(votes=self.votes.copy(), histogram=self.histogram.copy(), returns=returns)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU)
class Coordinator:
    """Aggregates per-state votes and returns; a restarted one rebuilds its state from the run folder."""

    def __init__(self, run: str, instances: int):
        self.tally = Tally(RunStore.open(run), instances)

    def add(self, name: str) -> int:
        return self.tally.add(name)

    def evidence(self) -> Evidence:
        return self.tally.evidence()


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU)
class Certifier:
    """Turns evidence into bounds: a quick look while instances arrive, and the certificate at the end."""

    def __init__(self, run: str, choices: dict):
        self.settings, self.choices = RunStore.open(run).settings(), choices
        self.guarantees = Guarantees(self.settings.mechanism, threat=choices["threat"], family=choices["accountant"])

    def preview(self, evidence: Evidence) -> dict:
        """What the instances so far would certify. Not a certificate: looking repeatedly is not accounted for."""
        returns = evidence.returns
        band = return_band(returns, self.settings.return_range, eta=self.choices["eta"], method=self.choices["band"])
        radius = radius_keeping(0.5, returns.mean(), band, self.guarantees, self.settings.radius_cap(self.choices["threat"]))
        return {"instances": len(returns), "mean_return": float(returns.mean()), "radius_keeping_half": radius}

    def certificate(self, evidence: Evidence, reference: list[int] | None, assumptions: list[str], context: dict) -> dict:
        return certificate_of(self.settings, evidence, self.choices, reference, assumptions, context)


def certificate_of(settings, evidence: Evidence, choices: dict, reference: list[int] | None, assumptions: list[str], context: dict) -> dict:
    """The certificate of this evidence; `reference` [S]: the actions against which accuracy is counted."""
    choices = dict(choices)
    actions = _actions(settings, evidence, choices.pop("inference"), reference)
    inputs = make_inputs(
        mechanism=settings.mechanism,
        units=settings.units,
        returns=evidence.returns,
        return_range=settings.return_range,
        rollouts=settings.rollouts,
        discount=settings.discount,
        clipped=settings.card.clip_returns,
        actions=actions,
        radius_cap=settings.radius_cap(choices["threat"]),
        **choices,
    )
    return make_certificate(inputs, assumptions=assumptions, context=context)


def _actions(settings, evidence: Evidence, inference: str, reference: list[int] | None) -> dict | None:
    if settings.actions:
        return scores_evidence(evidence.histogram, reference) if inference == "scores" else votes_evidence(evidence.votes, reference)
    return continuous_evidence(evidence.histogram, *settings.action_bounds) if settings.action_bounds else None
