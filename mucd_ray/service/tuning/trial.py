"""One trial of a study: a run folder of its own on the tuning data, trained rung by rung by the same actors as any run."""

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mucd_ray.certify.closed_form import AnyGuarantees, guarantees_of
from mucd_ray.certify.policy import expected_return_bound, radius_keeping, return_band
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.data.environments.own import UserEnvironment
from mucd_ray.errors import MucdError
from mucd_ray.files import MOST_JSON_BYTES, read_file, read_json
from mucd_ray.mechanism.outside import Outside
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.driver import GPU_BLOCK, Driver, trainers
from mucd_ray.service.runs.session import SEED_NOTE, Request, make_settings
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.store import RunStore
from mucd_ray.service.tuning.spaces import SPACES
from mucd_ray.service.tuning.tuned import AnyTuned, Origin
from mucd_ray.service.watching.live import Live
from mucd_ray.service.workers.actors import Coordinator
from mucd_ray.service.workers.cluster import Resources, Slot

ETA = Choices().eta
# In the run folder of a trial: its point of the search.
POINT = "point.json"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a study searches: with the same question it is the same study.

    Attributes:
        environment, mechanism, unit: of every trial; `mechanism` is a kind.
        algorithms: of the trials; with noise it is one.
        how: the data of the trials.
        card: the environment's public facts, as plain data.
        units: size N of the dataset that will be certified.
        fraction: of these units; the bound on the return there decides which trial is best.
        signal_budget: S of every trial; None without noise.
        entries, histories: to choose from, on bags and parts: numbers of entries that policies look at ("all": all of them), and of observations; none where they are not searched.
        certified_units: units in the largest bag or part with which a vote is certified there, of bag-then-noise in the usual bag; None with noise alone.
        certified_noise: the least noise with which a vote on such bags is certified there; None without bags and noise.
        discrete: whether actions are.
        source_key: that tells the source of a trajectory, where units are sources.
        trainer: from outside; None: the package's own.
        instances: P that the certificate will have.
        most_instances: that a trial trains.
        seed: of the search and of the trials' randomness.
        code: digest of the code that trains.
        imports: modules that the user names, which every trial imports first.
    """

    environment: str
    mechanism: str
    unit: str
    algorithms: tuple[str, ...]
    how: Origin
    card: dict
    units: int
    fraction: float
    signal_budget: float | None
    entries: tuple[str, ...] = ()
    histories: tuple[int, ...] = ()
    certified_units: int | None
    certified_noise: float | None
    discrete: bool
    source_key: str | None
    trainer: Outside | None
    instances: int
    most_instances: int
    seed: int
    code: str
    imports: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def of_card(self) -> dict:
        """Fields of a fit that are not searched and follow from the environment's card, as by default."""
        return {"mirrored": bool(self.card.get("mirror_actions")), "entries": self.card.get("entries")}

    @property
    def rungs(self) -> list[int]:
        """Numbers of instances after which half of the trials stop."""
        return [number for number in (self.most_instances // 8, self.most_instances // 4, self.most_instances // 2) if number >= 4] + [self.most_instances]

    def space(self) -> dict:
        """Where to search, in the terms of Ray Tune."""
        return SPACES[self.mechanism].where(self)

    def start(self) -> dict:
        """The first point of the search: the package's defaults."""
        return SPACES[self.mechanism].start(self)

    def rounded(self, point: dict) -> dict:
        """A point of the search as it can be written down."""
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in point.items()}

    def tuned(self, point: dict) -> AnyTuned:
        """A point of the search as constants of a run."""
        return SPACES[self.mechanism].tuned(self, self.rounded(point))

    def settings(self, tuned: AnyTuned, dataset: OfflineDataset) -> RunSettings:
        """Of a trial. Its run is about the tuning data, whose certificate would be conditional."""
        said = UserEnvironment(imports=self.imports)
        request = Request(dataset=dataset.name, card=EnvironmentCard.from_dict(self.card), environment=said, units=self.how.units, tuned=tuned, trainer=self.trainer, source_key=self.source_key, states=1, held_out=1)
        settings = make_settings(request, dataset, Choices())[0]
        return replace(settings, assumptions=(*settings.assumptions, SEED_NOTE))

    def outlook(self, returns: np.ndarray, return_range: tuple[float, float], guarantees: AnyGuarantees) -> dict[str, float]:
        """What P policies would certify if they earned what these few do. Nothing of it is certified: it serves to compare trials."""
        sample = np.sort(returns)[np.arange(self.instances) * len(returns) // self.instances]
        band = return_band(sample, return_range, eta=ETA, method="order-statistic")
        target = math.ceil(Fraction(str(self.fraction)) * self.units)
        half = radius_keeping(0.5, float(sample.mean()), band, guarantees, self.units)
        return {
            "instances": len(returns),
            "mean_return": float(np.mean(returns)),
            "fraction_keeping_half": max(half, 0) / self.units,
            "bound_at_target": expected_return_bound(band, guarantees, target),
        }


def bundles(slot: Slot, trainers: int) -> tune.PlacementGroupFactory:
    """What a trial takes: nothing itself, and room for its trainers."""
    kind = {f"accelerator_type:{slot.gpu_type}": 0.001} if slot.gpu_type else {}
    bundle = {"CPU": 1.0} | ({"GPU": slot.gpus} if slot.gpus else {}) | kind
    return tune.PlacementGroupFactory([{}, *[bundle] * trainers])


def begun_points(folder: Path, question: Question) -> list[dict]:
    """The points at which trials of a study have begun, in that order.

    Raises:
        MucdError: a file of them cannot be read.
    """
    begun, space, kinds = [], question.space(), SPACES[question.mechanism].kinds
    for file in folder.glob(f"trials/*/{POINT}"):
        try:
            entry = read_json(read_file(file, MOST_JSON_BYTES, within=folder), "it")
            point = {name: kinds[name](entry["point"][name]) for name in space}
            if entry["point"] != point or not all(domain.is_valid(point[name]) for name, domain in space.items()):
                raise ValueError("it is no point of the search")
            begun.append((float(entry["began"]), point))
        except (ValueError, KeyError, TypeError, MucdError) as error:
            raise MucdError(f"{file} cannot be read ({error}): delete its folder, and the trial is made again") from None
    return [point for _, point in sorted(begun, key=lambda entry: entry[0])]


def run_trial(config: dict, *, question: Question, folder: str, slot: Slot, resources: Resources, dataset: OfflineDataset) -> None:
    """Train rung after rung what the trial's run folder lacks, and report after each: a trial that was killed goes on where it stopped."""
    tuned = question.tuned(config)
    key = tuned.key()
    settings = question.settings(tuned, dataset)
    store = RunStore.create_or_open(f"{folder}/trials/{key}", settings, hashlib.sha256(f"mucd tuning {question.seed} {key}".encode()).digest())
    store.storage.create(POINT, json.dumps({"began": time.time(), "point": config}).encode())
    guarantees = guarantees_of(tuned.mechanism(question.units), units=question.units)
    # Actors that are scheduled by default would wait for room that trials hold.
    room, actors = ray.util.get_current_placement_group(), resources.actors
    assert room is not None and actors is not None
    group = {"scheduling_strategy": PlacementGroupSchedulingStrategy(room, placement_group_capture_child_tasks=True)}
    block = resources.block or (GPU_BLOCK if slot.gpus else -(-question.rungs[0] // actors))
    live = Live(store, question.most_instances)
    pool = trainers(store, settings, dataset, lambda: actors, resources, slot.options | group)
    coordinator = cast(Any, Coordinator).options(**group).remote(store.storage.absolute, 0)
    driver = Driver(store, pool, live, None, coordinator, block, backwards=False, lease=resources.lease)
    try:
        driver.choose_states(upcoming=question.rungs[0])
        for instances in question.rungs:
            evidence = driver.train(instances, None)
            tune.report(question.outlook(evidence.returns, settings.played_range, guarantees) | {"key": key})
    finally:
        live.close()
        pool.close()
