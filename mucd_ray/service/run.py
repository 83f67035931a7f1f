"""The driver: from settings and data to a finished run folder, on a local Ray or a cluster. Every step can be repeated."""

import contextlib
import logging
import os
import socket
import sys
from dataclasses import dataclass

import numpy as np
import ray
from tqdm import tqdm

from mucd_ray.certify.calibration import least_instances
from mucd_ray.certify.claim import round_down
from mucd_ray.certify.looks import effective_eta, looks_up_to
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.units import Units, make_units
from mucd_ray.service.about import assumptions, context
from mucd_ray.service.actors import Certifier, Coordinator, Tally, Trainer, certificate_of, data_hash
from mucd_ray.service.choices import Choices
from mucd_ray.service.pool import Pool
from mucd_ray.service.settings import RunSettings, check_code
from mucd_ray.service.store import RunStore

CPU_BLOCK, GPU_BLOCK = 32, 1024
# A preview of the bounds is asked for after this many blocks.
PREVIEW_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a run runs. `actors` None: one per CPU (or GPU share) of the cluster; `block` None: chosen for the device."""

    address: str | None = None
    actors: int | None = None
    block: int | None = None
    device: str = "auto"
    gpus_per_actor: float = 1.0


def training_units(settings: RunSettings, dataset: OfflineDataset) -> Units:
    """The data as the learner reads it; says on standard error how many trajectories are longer than the cap."""
    cap, longer = settings.learner.local.cap, 0
    if settings.mechanism.unit == "trajectory":
        longer = int((np.diff(dataset.trajectory_starts) > cap).sum())
    units = make_units(dataset, settings.card, settings.problem, settings.mechanism.unit)
    if not units.lengths.any():
        print(f"mucd: no trajectory earned at least {settings.learner.local.min_return:g}: all count as zero, and nothing is learned", file=sys.stderr)
    if longer:
        print(
            f"mucd: {longer} of {dataset.trajectories} trajectories have more than {cap} transitions: of each, {cap} evenly spaced ones from a random start take part in a step "
            "(a larger --cap takes more, at the price of time)",
            file=sys.stderr,
        )
    return units


def train(store: RunStore, dataset: OfflineDataset, instances: int, choices: Choices, resources: Resources, states=None) -> dict:
    """Train whatever of instances 0..instances-1 the run folder lacks, then certify; returns the certificate.

    With anytime looks and a goal, `instances` is a budget: results are looked at at every public number up to it, from the smallest
    on even if more is stored, and the first certificate that meets the goal is the result. So a run that was killed, or that overlaps
    another one, stops where an undisturbed one does.

    Args:
        states: the user's states [S, *observation_shape]; by default held-out instances choose them.
    Raises:
        MucdError: too few instances, a budget that is no look, another dataset, no resources, or training that keeps failing.
    """
    settings = store.settings()
    store.secret()
    choices.check(settings)
    needed = least_instances(max(settings.actions, 2), effective_eta(choices.eta, choices.looks, instances))
    if instances < needed:
        raise MucdError(f"{instances} instances cannot certify anything at eta {choices.eta:g}: at least {needed} are needed (--instances {needed})")
    check_code(settings)
    if dataset.fingerprint() != settings.fingerprint:
        raise MucdError(f"dataset {settings.dataset} has changed since the run in {store.path} began: restore it, or start a new run folder")
    if settings.states_sha256 is not None and states is None and store.states() is None:
        raise MucdError(f"{store.path / 'states.npy'} is missing and came from the user: restore it, or run again with --states-file")
    numbers = [instances] if choices.goal is None else looks_up_to(instances)
    if choices.looks == "fixed":
        numbers = [instances]
        store.add_target(instances)
    stored_states = store.states() if states is None else store.write_states(states)
    if store.read_json("baselines.json") and stored_states is not None:
        while numbers and not store.missing(numbers[0], numbers[0]):
            certificate = _certify(store, settings, choices, numbers.pop(0))
            _tell_look(certificate)
            if not numbers or is_goal_met(certificate):
                return certificate
    with _ray(resources):
        return _train_on_ray(store, settings, dataset, numbers, choices, resources)


def is_goal_met(certificate: dict) -> bool:
    goal = certificate["results"]["goal"]
    return goal is not None and goal["met"]


def certify(store: RunStore, choices: Choices, instances: int | None = None) -> dict:
    """Certify, in this process, the largest complete number of instances that may be certified; write certificate.json.

    With fixed looks these are the numbers that were asked for, with anytime looks the public series.

    Raises:
        MucdError: no such number is complete.
    """
    settings = store.settings()
    choices.check(settings)
    if choices.looks == "anytime":
        if instances:
            effective_eta(choices.eta, choices.looks, instances)
        wanted = [instances] if instances else looks_up_to(store.stored_instances())[::-1]
        lacking = f"{instances or 100} instances are not complete"
    else:
        wanted = [instances] if instances else sorted(store.targets(), reverse=True)
        lacking = f"{wanted[0] if wanted else 0} instances were asked for"
        if not wanted and store.looks():
            raise MucdError(f"no number of instances of {store.path} was fixed before training (it was made with --until): certify it with --looks anytime")
    target = next((number for number in wanted if not store.missing(number, number)), None)
    if target is None:
        raise MucdError(f"{store.path} is not finished ({lacking}): continue it with `mucd run` or `mucd grow`")
    return _certify(store, settings, choices, target)


def _certify(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> dict:
    about = _about(store, settings, choices, instances)
    certificate = certificate_of(settings, Tally(store, instances).evidence(), vars(choices), *about)
    store.write_json("certificate.json", certificate)
    return certificate


def _about(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> tuple[list[int] | None, list[str], dict]:
    """(reference actions, assumptions, context) of a certificate; an anytime look is recorded here, before its results are seen."""
    if choices.looks == "anytime":
        store.add_look(instances)
    reference = (store.read_json("baselines.json") or {}).get("reference")
    return reference, assumptions(store, settings, choices, instances), context(store, settings)


def _train_on_ray(store, settings, dataset, numbers, choices, resources) -> dict:
    """Train up to each of `numbers` in turn and certify, until the goal is met or the last is done."""
    arrays = training_units(settings, dataset).arrays().values()
    expected = data_hash(arrays)
    # The driver owns the data: what a worker puts dies with the worker.
    arrays = [ray.put(array) for array in arrays]
    run = str(store.path.resolve())
    slots, gpus = _slots(resources)
    size = resources.block or (GPU_BLOCK if gpus else CPU_BLOCK)
    calls = len(store.missing(numbers[-1], size)) + (store.read_json("baselines.json") is None)
    slots = max(1, min(slots, calls))
    behaviour = behaviour_return(settings, dataset)
    pool = Pool(lambda: Trainer.options(num_cpus=1, num_gpus=gpus).remote(run, expected, *arrays), slots)
    certifier = Certifier.remote(run, vars(choices))
    try:
        if store.states() is None:
            pool.map([("choose_states", ())], lambda index, states: store.write_states(states))
        for instances in numbers:
            blocks = store.missing(instances, size)
            coordinator = Coordinator.remote(run, instances)
            _train_blocks(store, pool, coordinator, certifier, blocks, instances, behaviour)
            evidence = ray.get(coordinator.evidence.remote())
            if len(evidence.returns) != instances:
                raise MucdError(f"only {len(evidence.returns)} of {instances} instances are stored: run the same command again")
            certificate = ray.get(certifier.certificate.remote(evidence, *_about(store, settings, choices, instances)))
            _tell_look(certificate)
            if is_goal_met(certificate):
                break
    finally:
        pool.close()
    store.write_json("certificate.json", certificate)
    return certificate


def _tell_look(certificate: dict) -> None:
    goal, instances = certificate["results"]["goal"], certificate["results"]["instances"]
    if goal is None:
        return
    words = "met" if goal["met"] else "not met"
    print(f"look at {instances} instances: {goal['name']} certified at r = {goal['radius']} is {round_down(goal['certified'], 4)}, wanted {goal['wanted']:g}: {words}", file=sys.stderr)


def discounted_returns(dataset: OfflineDataset, discount: float) -> np.ndarray:
    """Sum_t discount^t r_t of every trajectory, float64 [M]."""
    starts = dataset.trajectory_starts[:-1]
    steps = np.arange(len(dataset)) - np.repeat(starts, np.diff(dataset.trajectory_starts))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add.reduceat(dataset.rewards * discount**steps, starts)


def behaviour_return(settings: RunSettings, dataset: OfflineDataset) -> dict[str, float]:
    """{"behaviour": the recorded trajectories' mean return, clipped where returns are}; {} if poisoned rewards make it infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(settings.card.clipped(discounted_returns(dataset, settings.discount)).mean())
    return {"behaviour": mean} if np.isfinite(mean) else {}


def _train_blocks(store, pool, coordinator, certifier, blocks, instances, behaviour) -> None:
    """Train the blocks; beside them, on one trainer, the baselines if they are missing. `behaviour`: the data's, see `behaviour_return`."""
    done = instances - sum(len(block) for block in blocks)
    finished = 0
    # First, since no block takes as long.
    aside = [] if store.read_json("baselines.json") else [("baselines", ())]
    with tqdm(total=instances, initial=done, unit="instance", desc="training", file=sys.stderr, dynamic_ncols=True) as bar:
        previews = []

        def on_result(index, value):
            nonlocal finished
            if index < len(aside):
                store.write_json("baselines.json", value | behaviour)
                return
            finished += 1
            coordinator.add.remote(value)
            bar.update(len(blocks[index - len(aside)]))
            if finished % PREVIEW_EVERY == 0 and not previews:
                previews.append(certifier.preview.remote(coordinator.evidence.remote()))
            if previews and ray.wait(previews, timeout=0)[0]:
                preview = ray.get(previews.pop())
                bar.set_postfix_str(f"mean return {preview['mean_return']:.4g}, half kept up to r = {preview['radius_keeping_half']}")

        pool.map([*aside, *(("train", (block,)) for block in blocks)], on_result)


def _slots(resources: Resources) -> tuple[int, float]:
    """(number of trainers, GPUs of each). An impossible request fails here instead of pending for ever."""
    available = ray.cluster_resources()
    cpus, gpus = int(available.get("CPU", 0)), available.get("GPU", 0)
    if resources.device == "cuda" and not gpus:
        raise MucdError("the cluster has no GPU: leave --device at auto, or add a node with one")
    if gpus and resources.device != "cpu":
        share = resources.gpus_per_actor
        if not 0 < share <= 1:
            raise MucdError(f"GPUs per actor {share} is outside (0, 1]: 0.25 puts four actors on a GPU")
        return resources.actors or max(1, int(gpus / share)), share
    return resources.actors or max(1, cpus), 0.0


@contextlib.contextmanager
def _ray(resources: Resources):
    """Join the cluster that the address, RAY_ADDRESS or a Ray job names; otherwise start a local Ray and stop it at the end."""
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises bare ones, too
        raise MucdError(f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}): start one, or leave the address out") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself keeps trying a dead address for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise MucdError(f"no Ray cluster answers at {address} ({error}): start one there, or leave the address out for a local Ray") from None
