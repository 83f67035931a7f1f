"""The Ray actors: trainers make blocks, the coordinator adds them up, the certifier turns sums into bounds.

All of them hold nothing that cannot be rebuilt from the run folder, so any of them may die at any time. This file imports Ray and numpy alone, and constructors do
nothing: an actor tells where it is before it imports the rest, since Ray cannot tell one whose process is stopped until then from one that waits for room.
"""

import errno
import hashlib
import os
from typing import TYPE_CHECKING, cast

import numpy as np
import ray

from mucd_ray.errors import MucdError

if TYPE_CHECKING:
    from mucd_ray.learn.units import Units
    from mucd_ray.service.runs.settings import RunSettings
    from mucd_ray.service.runs.tally import Evidence
    from mucd_ray.service.runs.voting import Voter

# Coordinator and certifier take no GPU and must not see one.
NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}}
# A thread of its own answers whether the actor is still there.
WATCH = {"watch": 1}
# Trying again does not help against these.
STORAGE_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def data_hash(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Watched:
    """What every actor answers while it works."""

    @ray.method(concurrency_group="watch")
    def place(self) -> tuple[str, int]:
        """(node id, process id)."""
        return ray.get_runtime_context().get_node_id(), os.getpid()


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=WATCH)  # type: ignore[call-overload]  # not in Ray's stub
class Trainer(Watched):
    """Trains blocks of instances on its assigned device and commits them to the run folder."""

    def __init__(self, run: str, imports: tuple[str, ...], expected_hash: str, *arrays):
        self.ticks, self.run, self.imports, self.expected_hash, self.arrays = 0, run, imports, expected_hash, arrays
        self.voter: Voter | None = None

    @ray.method(concurrency_group="watch")
    def progress(self) -> int:
        """A number that grows with every instance trained, or every step where instances are trained together, and every step of their episodes."""
        return self.ticks

    def prepare(self) -> None:
        """Read the run folder, and check the data; before anything else."""
        from mucd_ray.data.environments.features import load_features_of
        from mucd_ray.learn.encoders import load_encoder
        from mucd_ray.learn.engines.precision import forbid_coarse_products
        from mucd_ray.learn.trainers.recorded import Recorded
        from mucd_ray.learn.units import ARRAYS, Units
        from mucd_ray.modules import import_modules
        from mucd_ray.service.runs import work  # noqa: F401  what `train` needs, too
        from mucd_ray.service.runs.settings import check_code
        from mucd_ray.service.storage.store import RunStore

        # What the driver was told on its command line, whatever the run folder says.
        import_modules(self.imports)
        self.store = RunStore.open(self.run)
        self.settings, self.secret = self.store.settings(), self.store.secret()
        check_code(self.settings)
        if self.settings.card.named_features is not None:
            load_features_of(self.settings.card)
        elif self.settings.card.encoder is not None:
            # The driver has compared it with the user's own file, by the hash that the settings hold.
            load_encoder(self.store.encoder(), self.settings.card.observation_shape)
        kind, names = (Units, ARRAYS) if self.settings.trainer is None else (Recorded, Recorded.ARRAYS)
        # Zero-copy views of the object store: an in-place write by anybody would change them for everybody.
        self.units_of = lambda unit, arrays: kind(unit=unit, **dict(zip(names, arrays, strict=True)))
        self.units = self.units_of(self.settings.mechanism.unit, self.arrays)
        self._check_data()
        forbid_coarse_products()
        self.device = "cuda" if ray.get_gpu_ids() else "cpu"

    def train(self, instances: range) -> str:
        """Train, vote, roll out, commit; returns the block's name."""
        from mucd_ray.service.runs.voting import are_shared
        from mucd_ray.service.runs.work import train_and_evaluate

        # Drivers have the policies of all parts stored first; trials of a study do not, which train only those that are drawn.
        parts = self._parts if are_shared(self.settings) and self.store.of_parts().names() else None
        return self._commit(self.store, train_and_evaluate(self.settings, self.secret, self.units, self.store.fixed_states(), instances, self.device, self._tick, parts))

    def train_parts(self, parts: range) -> str:
        """Train the policies of parts of a partition, and commit them; returns the block's name."""
        from mucd_ray.service.runs.work import train_parts

        return self._commit(self.store.of_parts(), train_parts(self.settings, cast("Units", self.units), self.store.fixed_states(), parts, self.device, self._tick))

    def _parts(self, parts: list[int]) -> dict:
        from mucd_ray.service.storage.policies import stored_parameters

        return stored_parameters(self.store.of_parts(), parts)

    def _commit(self, store, block) -> str:
        from mucd_ray.service.storage.storage import reason

        self._check_data()
        try:
            return store.commit(block)
        except OSError as error:
            if error.errno in STORAGE_FAILS:
                raise MucdError(f"{self.store.location} takes no more blocks ({reason(error)}): mend this, then run the same command again; all that is stored is kept") from None
            raise

    def vote(self, plan, episode: int) -> None:
        """Play an episode of the voted policy, follow it, and store it."""
        from mucd_ray.service.runs.voting import Voter

        voter = self.voter
        if voter is None or voter.plan != plan:
            voter = self.voter = Voter(self.store, plan)
        self.store.write_json(plan.file(episode), voter.episode(episode, self._tick))

    def choose_states(self) -> np.ndarray:
        from mucd_ray.service.runs.work import choose_states

        return choose_states(self.settings, self.secret, self.units, self.device, self._tick)

    def best_constant(self) -> dict:
        from mucd_ray.service.runs.work import best_constant

        return best_constant(self.settings, self._tick)

    def baselines(self, *trusted: np.ndarray) -> dict:
        """`trusted`: the arrays of the trusted data's units, if there are any."""
        from mucd_ray.service.runs.work import baselines

        return baselines(self.settings, self.units, self.store.fixed_states(), self._tick, self.units_of(self.settings.trusted_unit, trusted) if trusted else None)

    def _tick(self) -> None:
        self.ticks += 1

    def _check_data(self):
        if data_hash(self.units.arrays().values()) != self.expected_hash:
            raise MucdError("the shared training data was changed while the run was going on: start the run again")


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU, concurrency_groups=WATCH)  # type: ignore[call-overload]  # not in Ray's stub
class Coordinator(Watched):
    """Aggregates per-state votes and returns; a restarted one rebuilds its state from the run folder."""

    def __init__(self, run: str, instances: int):
        self.run, self.instances, self._tally = run, instances, None

    @property
    def tally(self):
        from mucd_ray.service.runs.tally import Tally
        from mucd_ray.service.storage.store import RunStore

        if self._tally is None:
            self._tally = Tally(RunStore.open(self.run), self.instances)
        return self._tally

    def add(self, names: list[str]) -> None:
        """Count blocks; which ones matters only for speed, since `missing` looks at the run folder."""
        self.tally.add(names)

    def missing(self, instances: int, block_size: int) -> list[range]:
        """What of 0..instances-1 the run folder lacks, as blocks; from now on those instances are counted."""
        self.tally.extend(instances)
        self.tally.sync()
        return self.tally.missing(block_size)

    def evidence(self, instances: int) -> "Evidence | None":
        """That of instances 0..instances-1, or None if one of them is not counted."""
        self.tally.extend(instances)
        return self.tally.evidence() if len(self.tally.returns) == instances else None

    def returns(self, instances: int) -> np.ndarray | None:
        """Returns of instances 0..instances-1 [P], whatever else is counted, or None if one of them is not."""
        self.tally.extend(instances)
        found = [self.tally.returns.get(instance) for instance in range(instances)]
        return None if None in found else np.array(found)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, runtime_env=NO_GPU, concurrency_groups=WATCH)  # type: ignore[call-overload]  # not in Ray's stub
class Certifier(Watched):
    """Turns evidence into bounds: live ones at every look while instances arrive, and the certificate at the end."""

    def __init__(self, run: str, choices: dict):
        self.run, self.choices = run, choices
        self.settings: RunSettings | None = None

    def _read_run(self) -> "RunSettings":
        """Settings, and guarantees, read the first time."""
        from mucd_ray.certify.closed_form import guarantees_of
        from mucd_ray.service.storage.store import RunStore

        if self.settings is None:
            settings = RunStore.open(self.run).settings()
            self.guarantees = guarantees_of(settings.mechanism, units=settings.units, threat=self.choices["threat"], family=self.choices["accountant"])
            self.settings = settings
        return self.settings

    def look(self, returns: np.ndarray | None) -> dict | None:
        """What a number of instances of the public series of looks certifies, from their returns [P]; None without them. The bounds of all looks hold
        together (certify/confidence/looks.py)."""
        if returns is None:
            return None
        from mucd_ray.certify.confidence.looks import effective_eta
        from mucd_ray.certify.policy import return_band, shares_kept

        settings = self._read_run()
        if not settings.rollouts:
            return None
        eta = effective_eta(self.choices["eta"], "anytime", len(returns))
        band = return_band(returns, settings.played_range, eta=eta, method=self.choices["band"])
        mean, cap = float(returns.mean()), settings.radius_cap(self.choices["threat"])
        keeps = shares_kept(mean, band, self.guarantees, cap, settings.units)
        return {"instances": len(returns), "eta": eta, "threat": self.choices["threat"], "what": "return" if settings.evaluator is None else "score", "mean_return": mean, "keeps": keeps}

    def certificate(self, evidence: "Evidence", reference: list | None, exact: np.ndarray | None, assumptions: list[str], context: dict) -> dict:
        return certificate_of(self._read_run(), evidence, self.choices, reference, exact, assumptions, context)


# What of the choices is an input of the certificate.
INPUTS = ("eta", "threat", "accountant", "band", "looks", "goal")


def certificate_of(settings, evidence: "Evidence", choices: dict, reference: list | None, exact: np.ndarray | None, assumptions: list[str], context: dict) -> dict:
    """The certificate of this evidence; `reference` [S], or [S, k] of components: the actions against which accuracy is counted; `exact` [S, A]: votes of all parts of a partition, if they are known."""
    from mucd_ray.certify.file.certificate import make_certificate, make_inputs

    actions = _actions(settings, evidence, choices["inference"], reference, exact)
    inputs = make_inputs(
        mechanism=settings.mechanism,
        units=settings.units,
        returns=evidence.returns if settings.rollouts else [],
        instances=None if settings.rollouts else len(evidence.returns),
        declared=None if settings.plays else settings.card.declared,
        return_range=settings.return_range,
        rollouts=settings.rollouts,
        discount=settings.discount,
        clipped=settings.clips,
        evaluator=settings.evaluator,
        condition=settings.condition,
        actions=actions,
        radius_cap=settings.radius_cap(choices["threat"]),
        trainer=settings.trainer,
        features=settings.features_source,
        **{name: choices[name] for name in INPUTS},
    )
    failures = {"failures": sum(evidence.failures.values()), "failures_by_cause": evidence.failures}
    if settings.evaluator is not None:
        failures |= {"unscored": sum(evidence.unscored.values()), "unscored_by_cause": evidence.unscored}
    return make_certificate(inputs, assumptions=assumptions, context=context | failures)


def _actions(settings, evidence: "Evidence", inference: str, reference: list | None, exact: np.ndarray | None) -> dict | None:
    from mucd_ray.certify.file.evidence import continuous_evidence, exact_evidence, scores_evidence, votes_evidence

    components = settings.components or ()
    if settings.actions and inference == "votes" and exact is not None:
        return exact_evidence(exact, reference, components)
    if settings.actions:
        return scores_evidence(evidence.histogram, reference, components) if inference == "scores" else votes_evidence(evidence.votes, reference, components)
    return continuous_evidence(evidence.histogram, *settings.action_bounds) if settings.action_bounds else None
