"""The driver: from settings and data to a finished run folder, on a local Ray or a cluster. Every step can be repeated."""

import contextlib
import logging
import os
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import ray
from tqdm import tqdm

from mucd_ray.certify.certificate import check_choices
from mucd_ray.certify.confidence import check_eta
from mucd_ray.certify.plan import least_instances
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.errors import MucdError
from mucd_ray.learn.losses import training_targets
from mucd_ray.service.actors import Certifier, Coordinator, Tally, Trainer, certificate_of, data_hash
from mucd_ray.service.pool import Pool
from mucd_ray.service.settings import RunSettings
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


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is certified: these may differ between certificates of one run. Checked before anything is trained."""

    eta: float = 0.001
    threat: str = "symmetric"
    accountant: str = "tradeoff"
    band: str = "order-statistic"

    def __post_init__(self):
        check_eta(self.eta)
        check_choices(self.threat, self.accountant, self.band)


def training_arrays(settings: RunSettings, dataset: OfflineDataset) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, d] and the losses' targets, [N] or [N, k]."""
    return settings.card.features(dataset.observations), training_targets(dataset.action_space, dataset.actions)


def train(store: RunStore, dataset: OfflineDataset, instances: int, choices: Choices, resources: Resources, states=None) -> dict:
    """Train whatever of instances 0..instances-1 the run folder lacks, then certify; returns the certificate.

    Args:
        states: the user's states [S, *observation_shape]; by default held-out instances choose them.
    Raises:
        MucdError: too few instances, another dataset, no resources, or training that keeps failing.
    """
    settings = store.settings()
    needed = least_instances(max(settings.actions, 2), choices.eta)
    if instances < needed:
        raise MucdError(f"{instances} instances cannot certify anything at eta {choices.eta:g}: at least {needed} are needed (--instances {needed})")
    if dataset.fingerprint() != settings.fingerprint:
        raise MucdError(f"dataset {settings.dataset} has changed since the run in {store.path} began: restore it, or start a new run folder")
    if settings.states_sha256 is not None and states is None and store.states() is None:
        raise MucdError(f"{store.path / 'states.npy'} is missing and came from the user: restore it, or run again with --states-file")
    store.add_target(instances)
    baselines = store.read_json("baselines.json")
    stored_states = store.states() if states is None else store.write_states(states)
    block = resources.block or (GPU_BLOCK if resources.device == "cuda" else CPU_BLOCK)
    if baselines and stored_states is not None and not store.missing(instances, block):
        return certify(store, choices, instances)
    with _ray(resources):
        return _train_on_ray(store, settings, dataset, instances, choices, resources)


def certify(store: RunStore, choices: Choices, instances: int | None = None) -> dict:
    """Certify, in this process, the largest number of instances that was asked for and is complete; write certificate.json.

    Raises:
        MucdError: no number that was asked for is complete.
    """
    settings = store.settings()
    wanted = [instances] if instances else sorted(store.targets(), reverse=True)
    target = next((number for number in wanted if not store.missing(number, number)), None)
    if target is None:
        raise MucdError(f"{store.path} is not finished ({wanted[0] if wanted else 0} instances were asked for): continue it with `mucd run` or `mucd grow`")
    evidence = Tally(store, target).evidence()
    certificate = certificate_of(settings, evidence, vars(choices), assumptions(store, settings, choices, target), context(store, settings))
    store.write_json("certificate.json", certificate)
    return certificate


def _train_on_ray(store, settings, dataset, instances, choices, resources) -> dict:
    arrays = training_arrays(settings, dataset)
    expected = data_hash(arrays)
    # The driver owns the data: what a worker puts dies with the worker.
    features, targets = (ray.put(array) for array in arrays)
    run = str(store.path.resolve())
    slots, gpus = _slots(resources)
    blocks = store.missing(instances, resources.block or (GPU_BLOCK if gpus else CPU_BLOCK))
    slots = max(1, min(slots, len(blocks) or 1))
    pool = Pool(lambda: Trainer.options(num_cpus=1, num_gpus=gpus).remote(run, features, targets, expected), slots)
    coordinator = Coordinator.remote(run, instances)
    certifier = Certifier.remote(run, vars(choices))
    try:
        _prepare(store, pool, dataset)
        _train_blocks(pool, coordinator, certifier, blocks, instances)
        notes = assumptions(store, settings, choices, instances)
        certificate = ray.get(certifier.certificate.remote(coordinator.evidence.remote(), notes, context(store, settings)))
        if len(certificate["inputs"]["returns"]) != instances:
            raise MucdError(f"only {len(certificate['inputs']['returns'])} of {instances} instances are stored: run the same command again")
    finally:
        pool.close()
    store.write_json("certificate.json", certificate)
    return certificate


def _prepare(store: RunStore, pool: Pool, dataset: OfflineDataset) -> None:
    """The states to vote on, and the baselines, where they are missing."""
    steps = []
    if store.states() is None:
        steps.append(("choose_states", store.write_states))
    if store.read_json("baselines.json") is None:
        behaviour = {"behaviour": float(dataset.trajectory_returns.mean())}
        steps.append(("baselines", lambda value: store.write_json("baselines.json", value | behaviour)))
    pool.map([(method, ()) for method, _ in steps], lambda index, value: steps[index][1](value))


def _train_blocks(pool, coordinator, certifier, blocks, instances) -> None:
    done = instances - sum(len(block) for block in blocks)
    finished = 0
    with tqdm(total=instances, initial=done, unit="instance", desc="training", file=sys.stderr, dynamic_ncols=True) as bar:
        previews = []

        def on_block(index, name):
            nonlocal finished
            finished += 1
            coordinator.add.remote(name)
            bar.update(len(blocks[index]))
            if finished % PREVIEW_EVERY == 0 and not previews:
                previews.append(certifier.preview.remote(coordinator.evidence.remote()))
            if previews and ray.wait(previews, timeout=0)[0]:
                preview = ray.get(previews.pop())
                bar.set_postfix_str(f"mean return {preview['mean_return']:.4g}, half kept up to r = {preview['radius_keeping_half']}")

        pool.map([("train", (block,)) for block in blocks], on_block)


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
    except (ConnectionError, RuntimeError, ValueError) as error:
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


def assumptions(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> list[str]:
    """What must be true about this run, beside what every certificate assumes."""
    others = [str(target) for target in store.targets() if target != instances]
    looks = f"The number of instances, {instances}, was fixed before they were trained."
    if others:
        looks = (
            f"This run was asked for {instances} instances and also for {', '.join(others)}. The confidence holds if these numbers, and the choice among the "
            "certificates of this run, do not depend on results; nothing is claimed for a number that was chosen after looking."
        )
    return [
        looks,
        "Sample rate, noise multiplier, clip norm, steps, normaliser, network, optimiser and the environment card are constants that do not depend on the "
        "data, except on its rounded size where the next sentence says so.",
        settings.size_note(choices.threat),
        f"Environment card: {settings.card.source}",
        *settings.assumptions,
    ]


def context(store: RunStore, settings: RunSettings) -> dict:
    """Where the evidence comes from; no result depends on it."""
    return {
        "dataset": {"name": settings.dataset, "sha256": settings.fingerprint, "units": settings.units, "environment": settings.card.env_id},
        "baselines": store.read_json("baselines.json"),
        "instances_asked_for": store.targets(),
        "learner": settings.to_dict()["learner"],
        "parameters": settings.network.parameter_count,
        "states_sha256": store.states_hash(),
        "states_chosen_by": f"{settings.held_out} held-out instances" if settings.states_sha256 is None else "the user's file",
        "software": {name: version(name) for name in ("mucd_ray", "numpy", "scipy", "torch", "ray", "gymnasium", "minari")},
    }
