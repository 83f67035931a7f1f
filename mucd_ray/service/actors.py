"""The Ray actors: trainers make blocks, the coordinator adds them up, the certifier turns sums into bounds.

All of them hold nothing that cannot be rebuilt from the run folder, so any of them may die at any time.
"""

import hashlib

import numpy as np
import ray

from mucd_ray.certify.certificate import make_certificate, make_inputs
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.certify.policy import radius_keeping, return_band
from mucd_ray.errors import MucdError
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

    def __init__(self, run: str, features, targets, expected_hash: str):
        self.store = RunStore.open(run)
        self.settings, self.secret = self.store.settings(), self.store.secret()
        # Zero-copy views of the object store: an in-place write by anybody would change them for everybody.
        self.data, self.expected_hash = (features, targets), expected_hash
        self._check_data()
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"

    def train(self, instances: range) -> str:
        """Train, vote, roll out, commit; returns the block's name."""
        from mucd_ray.service.work import train_and_evaluate

        block = train_and_evaluate(self.settings, self.secret, *self.data, self.store.states(), instances, self.device)
        self._check_data()
        return self.store.commit(block)

    def choose_states(self) -> np.ndarray:
        from mucd_ray.service.work import choose_states

        return choose_states(self.settings, self.secret, *self.data, self.device)

    def baselines(self) -> dict:
        from mucd_ray.service.work import baselines

        return baselines(self.settings, *self.data)

    def _check_data(self):
        if data_hash(self.data) != self.expected_hash:
            raise MucdError("the shared training data was changed while the run was going on: start the run again")


class Tally:
    """Votes and returns of the stored instances 0..instances-1, each counted once."""

    def __init__(self, store: RunStore, instances: int):
        self.store, self.settings, self.instances = store, store.settings(), instances
        self.returns = {}
        self.votes = np.zeros((self.settings.states if self.settings.actions else 0, self.settings.actions), np.int64)
        for name in store.names():
            self.add(name)

    def add(self, name: str) -> int:
        """Count a stored block; adding it again changes nothing. Returns the number of instances counted."""
        block = self.store.read(name)
        if block is not None:
            new = [k for k, instance in enumerate(block.instances) if instance < self.instances and instance not in self.returns]
            self.returns |= {block.first + k: float(block.returns[k]) for k in new}
            for action in range(self.settings.actions):
                self.votes[:, action] += (block.actions[new] == action).sum(axis=0)
        return len(self.returns)

    def evidence(self) -> tuple[np.ndarray, np.ndarray]:
        """(votes [S, A], returns [P] in the order of instances)."""
        return self.votes.copy(), np.array([self.returns[instance] for instance in sorted(self.returns)])


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU)
class Coordinator:
    """Aggregates per-state votes and returns; a restarted one rebuilds its state from the run folder."""

    def __init__(self, run: str, instances: int):
        self.tally = Tally(RunStore.open(run), instances)

    def add(self, name: str) -> int:
        return self.tally.add(name)

    def evidence(self):
        return self.tally.evidence()


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU)
class Certifier:
    """Turns evidence into bounds: a quick look while instances arrive, and the certificate at the end."""

    def __init__(self, run: str, choices: dict):
        self.settings, self.choices = RunStore.open(run).settings(), choices
        self.guarantees = Guarantees(self.settings.mechanism, threat=choices["threat"], family=choices["accountant"])

    def preview(self, evidence) -> dict:
        """What the instances so far would certify. Not a certificate: looking repeatedly is not accounted for."""
        _, returns = evidence
        band = return_band(returns, self.settings.card.return_range, eta=self.choices["eta"], method=self.choices["band"])
        radius = radius_keeping(0.5, returns.mean(), band, self.guarantees, self.settings.radius_cap(self.choices["threat"]))
        return {"instances": len(returns), "mean_return": float(returns.mean()), "radius_keeping_half": radius}

    def certificate(self, evidence, assumptions: list[str], context: dict) -> dict:
        return certificate_of(self.settings, evidence, self.choices, assumptions, context)


def certificate_of(settings, evidence, choices: dict, assumptions: list[str], context: dict) -> dict:
    votes, returns = evidence
    inputs = make_inputs(
        mechanism=settings.mechanism,
        units=settings.units,
        votes=votes,
        returns=returns,
        return_range=settings.card.return_range,
        radius_cap=settings.radius_cap(choices["threat"]),
        **choices,
    )
    return make_certificate(inputs, assumptions=assumptions, context=context)
