"""The driver: from settings and data to a finished run folder, on a local Ray or a cluster. Every step can be repeated."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import ray

from mucd_ray.certify.confidence.looks import effective_eta, looks_up_to
from mucd_ray.certify.planning.calibration import least_instances
from mucd_ray.certify.rounding import exactly, round_down
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.formats.labelled import content_of_test
from mucd_ray.data.formats.minari import load_dataset
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.learn.trainers.recorded import Recorded
from mucd_ray.learn.units import Units, make_units
from mucd_ray.mechanism.partition import Partition
from mucd_ray.plugins import check_same
from mucd_ray.progress import bar, stage
from mucd_ray.report.warnings import early_warnings
from mucd_ray.service.runs.about import assumptions, context
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.rules import check_rule, with_rule
from mucd_ray.service.runs.settings import RunSettings, check_code, check_imports
from mucd_ray.service.runs.tally import Evidence, Tally
from mucd_ray.service.runs.voting import VotePlan, kind_of, missing_episodes, missing_parts, with_votes
from mucd_ray.service.storage.store import MOST_INSTANCES, RunStore, instances_of
from mucd_ray.service.watching.live import Live
from mucd_ray.service.workers.actors import Certifier, Coordinator, Trainer, certificate_of, data_hash
from mucd_ray.service.workers.cluster import Resources, joined, slot_for
from mucd_ray.service.workers.pool import ANSWER_PATIENCE, Call, Pool, end_process, text_of
from mucd_ray.words import counted

CPU_BLOCK, GPU_BLOCK, OUTSIDE_BLOCK = 32, 1024, 8
# Seconds between looks at the run folder for what other drivers have stored.
LIST_EVERY = 15.0
# Seconds between two questions whether an actor still answers.
ASK_EVERY = 2.0
# Seconds between two looks: each takes a second of a core.
LOOK_EVERY = 10.0
# From here on a clip cuts nothing, as that of raw observations.
WIDEST_CLIP = 1e30
ROWS_AT_A_TIME, ROUNDING = 1 << 16, 1e-6


def training_units(settings: RunSettings, dataset: OfflineDataset) -> Units | Recorded:
    """The data as the learner reads it; says on standard error how many units are longer than the cap."""
    dataset = settings.card.as_seen(dataset)
    if settings.trainer is not None:
        return Recorded.of(_encoded(settings, dataset), settings.mechanism.unit)
    cap, unit = settings.learner.local.cap, settings.mechanism.unit
    units = make_units(dataset, settings.card, settings.problem, unit)
    longer = int((units.lengths > cap).sum()) if unit != "transition" and settings.fit is None else 0
    least = settings.learner.local.min_return
    if least is not None and not units.lengths.any():
        print(f"mucd: no trajectory earned at least {exactly(least)}: all count as zero, and nothing is learned", file=sys.stderr)
    if longer:
        print(
            f"mucd: {longer} of {counted(len(units), unit)} have more than {cap} transitions: of each, {cap} evenly spaced ones from a random start take part in a step "
            "(a larger --cap takes more, at the price of time)",
            file=sys.stderr,
        )
    return units


def trusted_units(settings: RunSettings) -> Units | Recorded | None:
    """The trusted data as the learner reads it, or None without any.

    Raises:
        MucdError: they are missing, or have changed since the run began.
    """
    if settings.trusted is None:
        return None
    name, fingerprint = settings.trusted
    trusted = load_dataset(name, observation_keys=settings.card.observation_keys)
    if trusted.fingerprint() != fingerprint:
        raise MucdError(f"the trusted dataset {name} has changed since the run began: restore it, or start a new run folder")
    # The hash is of its content: what that means is what it declares.
    settings.card.check(trusted)
    trusted = settings.card.as_seen(trusted)
    if settings.trainer is not None:
        return Recorded.of(_encoded(settings, trusted), settings.trusted_unit)
    return make_units(trusted, settings.card, settings.problem, settings.trusted_unit)


def _encoded(settings: RunSettings, dataset: OfflineDataset) -> OfflineDataset:
    """As trainers from outside see it: observations as recorded, or each replaced by its features."""
    if settings.card.encoder is None:
        return dataset
    return replace(dataset, observations=settings.card.features(dataset.observations), next_observations=settings.card.features(dataset.next_observations))


def train(store: RunStore, dataset: OfflineDataset, instances: int, choices: Choices, resources: Resources, states=None) -> dict:
    """Train whatever of instances 0..instances-1 the run folder lacks, then certify; returns the certificate.

    With anytime looks and a goal, `instances` is a budget: results are looked at at every public number up to it, from the smallest
    on even if more is stored, and the first certificate that meets the goal is the result. So a run that was killed, or that overlaps
    another one, stops where an undisturbed one does.

    Args:
        states: the user's states [S, *observation_shape]; by default held-out instances choose them.
    Raises:
        MucdError: too few instances, or fewer than the run has; a budget that is no look, another dataset, no resources, or training that keeps failing.
    """
    settings = store.settings()
    store.secret()
    check_imports(store, settings, resources.imports)
    choices.check(settings)
    check_instances(settings, choices, instances)
    check_code(settings)
    check_same(settings.plugins, store.location)
    if dataset.fingerprint() != settings.fingerprint:
        raise MucdError(f"dataset {settings.dataset} has changed since the run in {store.location} began: restore it, or start a new run folder")
    settings.card.check(dataset)
    if settings.states_sha256 is not None and states is None and store.states() is None:
        raise MucdError(f"{store.file('states.npy')} is missing and came from the user: restore it, or run again with --states-file")
    _refuse_less(store, instances)
    return _with_episodes(store, _trained(store, settings, dataset, instances, choices, resources, states), choices)


def _with_episodes(store: RunStore, certificate: dict, choices: Choices) -> dict:
    """The certificate with what policies that all vote do in episodes of their own."""
    certificate = with_votes(store, certificate, choices) if choices.policy == "vote" else certificate
    return certificate if choices.rule is None else with_rule(store, certificate, choices)


def check_instances(settings: RunSettings, choices: Choices, instances: int) -> None:
    """Raise MucdError where so few instances certify nothing, or a run folder has no names for so many."""
    actions, decisions = settings.judged
    needed = least_instances(max(actions, 2), effective_eta(choices.eta, choices.looks, instances) / decisions)
    if instances < needed:
        raise MucdError(f"{instances} instances cannot certify anything at eta {exactly(choices.eta)}: at least {needed} are needed (--instances {needed})")
    if instances > MOST_INSTANCES:
        raise MucdError(f"{instances} instances are more than the {MOST_INSTANCES:,} for which a run folder has names: ask for fewer")


def _trained(store: RunStore, settings: RunSettings, dataset: OfflineDataset, instances: int, choices: Choices, resources: Resources, states) -> dict:
    numbers = [instances] if choices.goal is None else looks_up_to(instances)
    if choices.looks == "fixed":
        numbers = [instances]
        store.add_target(instances)
    stored_states = store.states() if states is None else store.write_states(states)
    write_labels(store, settings, dataset)
    if store.baselines() and stored_states is not None and not missing_parts(store, settings):
        while numbers and not store.missing(numbers[0], numbers[0]):
            certificate = _make(store, settings, choices, numbers.pop(0))
            _tell_look(certificate)
            if not numbers or is_goal_met(certificate):
                _write_larger(store, certificate)
                return certificate
    with joined(resources):
        return _train_on_ray(store, settings, dataset, numbers, choices, resources)


def write_labels(store: RunStore, settings: RunSettings, dataset: OfflineDataset) -> None:
    """Of labelled images what is right stands beside the run from the beginning, in the place of what is compared with elsewhere. Raises MucdError where these are not those with which it began."""
    if settings.labels_sha256 is None or store.baselines() is not None:
        return
    if dataset.test is None or content_of_test(dataset.test) != settings.labels_sha256:
        raise MucdError(f"the test images or labels of {settings.dataset} have changed since the run in {store.location} began: restore them, or start a new run folder")
    store.write_json("baselines.json", {"reference": dataset.test.labels.tolist()})


def _refuse_less(store: RunStore, instances: int) -> None:
    """Raise MucdError where a run has more than this: its certificate would be replaced by one of fewer instances."""
    targets, looks, stored = store.targets(), store.looks(), store.stored_instances()
    most = max((number for number in (*targets, *looks) if number <= stored), default=0)
    if instances < most:
        raise MucdError(
            f"{store.location} has {most} instances, more than {instances}: `mucd certify {store.location}{'' if most in targets else ' --looks anytime'}` certifies these, "
            f"and only a number above {most} grows it"
        )


def _write_larger(store: RunStore, certificate: dict) -> None:
    """Write certificate.json, unless the one that is there has more instances: a weaker goal is met by fewer.

    Raises:
        MucdError: it has.
    """
    try:
        held = int((store.certificate() or {})["results"]["instances"])
    except (MucdError, KeyError, TypeError, ValueError, OverflowError):
        held = 0
    instances = certificate["results"]["instances"]
    if held > instances and certificate["inputs"]["looks"] == "fixed":
        raise MucdError(f"{store.location} has a certificate of {held} instances, more than these {instances}: it stays as it is; `mucd certify {store.location}` certifies all")
    if held > instances:
        raise MucdError(
            f"{store.location} has a certificate of {held} instances, and this goal is met with {instances} of them: it stays as it is; "
            f"`mucd certify {store.location} --looks anytime` certifies all, with --instances {instances} so many"
        )
    store.write_json("certificate.json", certificate)


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
    check_rule(store, settings, choices)
    if choices.looks == "anytime":
        if instances:
            effective_eta(choices.eta, choices.looks, instances)
        wanted = [instances] if instances else looks_up_to(store.stored_instances())[::-1]
        lacking = f"{instances or 100} instances are not complete"
    else:
        wanted = [instances] if instances else sorted(store.targets(), reverse=True)
        lacking = f"{wanted[0] if wanted else 0} instances were asked for"
        if not wanted and store.looks():
            raise MucdError(f"no number of instances of {store.location} was fixed before training (it was made with --until): certify it with --looks anytime")
    stored = store.stored_instances()
    target = next((number for number in wanted if number <= stored and not store.missing(number, number)), None)
    if target is None:
        raise MucdError(f"{store.location} is not finished ({lacking}): continue it with `mucd run` or `mucd grow`")
    certificate = _make(store, settings, choices, target)
    store.write_json("certificate.json", certificate)
    return _with_episodes(store, certificate, choices)


def _make(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> dict:
    with stage("certificate"):
        about = _about(store, settings, choices, instances)
        return certificate_of(settings, Tally(store, instances).evidence(), vars(choices), *about)


def _about(store: RunStore, settings: RunSettings, choices: Choices, instances: int) -> tuple[list | None, np.ndarray | None, list[str], dict]:
    """(reference actions, exact votes or None, assumptions, context) of a certificate; an anytime look is recorded here, before its results are seen."""
    if choices.looks == "anytime":
        store.add_look(instances)
    reference = (store.baselines() or {}).get("reference")
    exact = Tally(store.of_parts(), settings.mechanism_of(Partition).parts).evidence().votes if settings.actions and kind_of(store, settings) == "exact" else None
    return reference, exact, assumptions(store, settings, choices, instances), context(store, settings)


def _train_on_ray(store, settings, dataset, numbers, choices, resources) -> dict:
    """Train up to each of `numbers` in turn and certify, until the goal is met or the last is done."""
    slot = slot_for(resources)
    # Trainers from outside train one instance after the other, wherever they run.
    size = resources.block or (OUTSIDE_BLOCK if settings.trainer else GPU_BLOCK if slot.gpus else CPU_BLOCK)
    run, live = store.storage.absolute, Live(store, numbers[-1])
    others = live.others()
    for other in others:
        print(f"mucd: driver {other['process']} on {printable(other['host'])} works on this run, too: sharing its work", file=sys.stderr)
    live.renew()
    pool = trainers(store, settings, dataset, lambda: resources.actors or slot.count(), resources, slot.options)
    # Only where they will be read.
    trusted = trusted_units(settings) if store.baselines() is None else None
    refs = () if trusted is None else tuple(ray.put(array) for array in trusted.arrays().values())
    driver = Driver(store, pool, live, cast(Any, Certifier).remote(run, vars(choices)), cast(Any, Coordinator).remote(run, 0), size, backwards=bool(others), lease=resources.lease, trusted=refs)
    try:
        with stage("states") if store.states() is None else contextlib.nullcontext():
            driver.choose_states(upcoming=numbers[0])
        driver.train_parts(settings)
        for instances in numbers:
            evidence = driver.train(instances, recorded_values(settings, dataset) if store.baselines() is None else {})
            with stage("certificate"):
                about = _about(store, settings, choices, instances)
                certificate = driver.ask(driver.certifier, lambda actor: actor.certificate.remote(evidence, *about))
            _tell_look(certificate)
            if is_goal_met(certificate):
                break
        _write_larger(store, certificate)
        if choices.policy == "vote" and settings.actions:
            driver.vote(VotePlan.of(certificate, choices))
        driver.publish(instances, end=True)
    finally:
        live.close()
        pool.close()
    return certificate


def trainers(store: RunStore, settings: RunSettings, dataset: OfflineDataset, slots: Callable[[], int], resources: Resources, options: dict) -> Pool:
    """A pool of trainers of this run; `options` are Ray's, of each. The data live as long as the calling process: what a worker puts dies with it."""
    arrays = training_units(settings, dataset).arrays().values()
    run, expected, references = store.storage.absolute, data_hash(arrays), [ray.put(array) for array in arrays]
    return Pool(lambda: cast(Any, Trainer).options(**options).remote(run, resources.imports, expected, *references), slots, resources.lease)


class Driver:
    """Keeps the trainers busy until instances 0..n-1 are stored, and tells what is going on; without a certifier (None) no bounds."""

    def __init__(self, store: RunStore, pool: Pool, live: Live, certifier, coordinator, size: int, *, backwards: bool, lease: float, trusted: tuple = ()):
        self.store, self.pool, self.live, self.size, self.backwards, self.lease = store, pool, live, size, backwards, lease
        self.certifier, self.coordinator, self.trusted = certifier, coordinator, trusted
        self.look, self.looked, self.listed = None, 0.0, time.monotonic()

    def choose_states(self, upcoming: int) -> None:
        """Have the states chosen if they are not; trainers for the `upcoming` instances may start meanwhile."""
        if self.store.states() is not None:
            return
        self.pool.upcoming = -(-upcoming // self.size)
        for result in self.pool.run([Call("choose_states")], is_done=lambda call: self.store.states() is not None):
            self.live.renew()
            if result is not None:
                self.store.write_states(result[1])
        self.pool.upcoming = 0

    def train_parts(self, settings: RunSettings) -> None:
        """Have the policies of all parts of a partition stored, each trained once: instances are draws of them."""
        while blocks := missing_parts(self.store, settings, self.size):
            with stage("parts"):
                for _ in self.pool.run([Call("train_parts", (block,)) for block in blocks], halve=_halve):
                    self.live.renew()

    def vote(self, plan: VotePlan) -> None:
        """Have the episodes of the voted policy played and stored."""
        calls = [Call("vote", (plan, episode)) for episode in missing_episodes(self.store, plan)]
        with bar("voted policy", "episode", plan.episodes) as shown:
            shown.update(plan.episodes - len(calls))
            for result in self.pool.run(calls):
                self.live.renew()
                shown.update(result is not None)

    def train(self, instances: int, behaviour: dict | None) -> Evidence:
        """The evidence of instances 0..instances-1: what is missing is trained, and beside it the baselines if they are missing, too.

        Args:
            behaviour: the data's part of the baselines, see `recorded_values`; None: no baselines.
        """
        # First, since a user may stop here who reads what constant actions earn, and no block takes as long as the other.
        aside = [Call("best_constant"), Call("baselines", self.trusted)] if behaviour is not None and self.store.baselines() is None else []
        again = False
        with bar("training", "instance", instances) as shown:
            while True:
                blocks = self.ask(self.coordinator, lambda actor: actor.missing.remote(instances, self.size))
                if not blocks and not aside:
                    shown.update(instances - shown.n)
                    # A block may be damaged since the coordinator counted it, and the coordinator may have begun anew.
                    evidence = self.ask(self.coordinator, lambda actor: actor.evidence.remote(instances))
                    if evidence is not None:
                        self._last_look(evidence)
                        return evidence
                if again:
                    # They were stored, and then found damaged or gone.
                    self.pool.failures["block_damaged"] += len(blocks)
                self._train_blocks([*aside, *(Call("train", (block,)) for block in (blocks[::-1] if self.backwards else blocks))], instances, behaviour, shown)
                aside, again = [], True

    def _last_look(self, evidence: Evidence) -> None:
        """Bounds for who watches, where all blocks came too fast for a look between; a run that had one has its certificate next."""
        passed, self.look = looks_up_to(len(evidence.returns)), None
        if self.certifier and passed and self.live.bounds is None:
            self.live.bounds = self.ask(self.certifier, lambda actor: actor.look.remote(evidence.returns[: passed[-1]]))

    def _train_blocks(self, calls: list[Call], instances: int, behaviour: dict | None, shown) -> None:
        done = np.ones(instances, bool)
        for call in calls:
            if call.method == "train":
                done[slice(call.arguments[0].start, call.arguments[0].stop)] = False

        def is_done(call: Call) -> bool:
            if call.method != "train":
                return call.method in beside or self.store.baselines() is not None
            return bool(done[call.arguments[0].start : call.arguments[0].stop].all())

        def mark(names: list[str]) -> None:
            for name in names:
                done[instances_of(name).start : instances_of(name).stop] = True

        finished: list[str] = []
        told: set[str] = set()
        beside: dict[str, dict] = {}  # what stands in baselines.json in the end
        with contextlib.ExitStack() as waiting:
            for result in self.pool.run(calls, is_done=is_done, halve=_halve):
                if result is not None:
                    call, value, seconds = result
                    if call.method != "train":
                        beside[call.method] = value
                        if call.method == "best_constant":
                            for text in early_warnings(value | (behaviour or {})):
                                shown.write(f"warning: {text}", file=sys.stderr)
                        if len(beside) == 2:
                            self.store.write_json("baselines.json", beside["baselines"] | beside["best_constant"] | (behaviour or {}))
                    else:
                        mark([value])
                        finished.append(value)
                        self.live.trained(len(call.arguments[0]), seconds)
                    continue
                if time.monotonic() - self.listed > LIST_EVERY:
                    self.listed = time.monotonic()
                    with self.live.tolerated():
                        names = self.store.names()
                        mark(names)
                        finished = [*finished, *set(names).difference(told, finished)]
                if finished:
                    self.coordinator.add.remote(finished)
                    told |= set(finished)
                    finished = []
                shown.update(int(done.sum()) - shown.n)
                self._look(instances if done.all() else int(done.argmin()), shown)
                self.publish(int(done.sum()))
                if done.all() and not shown.disable:
                    shown.close()
                    waiting.enter_context(stage("baselines") if self.store.baselines() is None else contextlib.nullcontext())

    def _look(self, stored: int, shown) -> None:
        """Take bounds that are ready, and ask for those at the largest public number of instances up to `stored`: that many have no gap."""
        if self.look is not None and ray.wait([self.look], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):
                # None: one of them is damaged, or not counted yet.
                self.live.bounds = ray.get(self.look) or self.live.bounds
                shown.set_postfix_str(_bounds_in_short(self.live.bounds))
            self.look = None
        known = self.live.bounds["instances"] if self.live.bounds else 0
        passed = [number for number in looks_up_to(stored) if number > known]
        if self.certifier and passed and self.look is None and time.monotonic() - self.looked > LOOK_EVERY:
            self.look, self.looked = self.certifier.look.remote(self.coordinator.returns.remote(passed[-1])), time.monotonic()

    def publish(self, done: int, *, end: bool = False) -> None:
        """Be seen, and tell how far the run is; see `Live.publish`."""
        self.live.renew()
        self.live.publish(done, {"alive": self.pool.alive, "wanted": self.pool.wanted}, self.pool.failures, end=end)

    def ask(self, actor, call: Callable):
        """The reply of the coordinator or the certifier, however often it dies; one that does not answer is replaced.

        Args:
            call: makes the call on the actor, maybe more than once.
        Raises:
            MucdError, OSError: what the actor raised; it cannot start.
        """
        name = "coordinator" if actor is self.coordinator else "certifier"
        reply, ping, place, answered = call(actor), None, None, time.monotonic()
        while not ray.wait([reply], timeout=ASK_EVERY)[0]:
            self.live.renew()
            if ping is None:
                ping = actor.place.remote()
            elif ray.wait([ping], timeout=0)[0]:
                with contextlib.suppress(ray.exceptions.RayError):
                    place, answered = ray.get(ping), time.monotonic()
                ping = None
            elif time.monotonic() - answered > min(self.lease, ANSWER_PATIENCE):
                ray.kill(actor, no_restart=False)
                end_process(place)
                reply, ping, answered = call(actor), None, time.monotonic()
        try:
            return ray.get(reply)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, MucdError | OSError) else MucdError(f"the {name} failed: {text_of(error)}") from None
        except ray.exceptions.RayError as error:
            raise MucdError(f"the {name} does not start: {text_of(error)}") from None


def _halve(call: Call) -> list[Call]:
    """Two calls for a block that was maybe too large for its trainer; which instances are trained together changes no result."""
    if call.method not in ("train", "train_parts") or len(call.arguments[0]) < 2:
        return [call]
    block = call.arguments[0]
    return [Call(call.method, (block[: len(block) // 2],)), Call(call.method, (block[len(block) // 2 :],))]


def _bounds_in_short(bounds: dict | None) -> str:
    if bounds is None:
        return ""
    return f"at {bounds['instances']}: mean {bounds['what']} {round_down(bounds['mean_return'], 4)}, half kept up to r = {bounds['keeps']['0.5']['radius']}"


def _tell_look(certificate: dict) -> None:
    goal, instances = certificate["results"]["goal"], certificate["results"]["instances"]
    if goal is None:
        return
    words = "met" if goal["met"] else "not met"
    print(f"look at {instances} instances: {goal['name']} certified at r = {goal['radius']} is {round_down(goal['certified'], 4)}, wanted {exactly(goal['wanted'])}: {words}", file=sys.stderr)


def discounted_returns(dataset: OfflineDataset, discount: float) -> np.ndarray:
    """Sum_t discount^t r_t of every trajectory, float64 [M]."""
    starts = dataset.trajectory_starts[:-1]
    steps = np.arange(len(dataset)) - np.repeat(starts, np.diff(dataset.trajectory_starts))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add.reduceat(dataset.rewards * discount**steps, starts)


def behaviour_return(settings: RunSettings, dataset: OfflineDataset) -> dict[str, float]:
    """{"behaviour": the recorded trajectories' mean return, clipped where returns are}; {} if poisoned rewards make it infinite, or nothing is played."""
    if not settings.rollouts or settings.evaluator is not None:
        return {}
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(settings.card.clipped(discounted_returns(dataset, settings.discount)).mean())
    return {"behaviour": mean} if np.isfinite(mean) else {}


def recorded_values(settings: RunSettings, dataset: OfflineDataset) -> dict[str, float]:
    """What reports tell of the recording, and nothing else uses, since an attacker may have written it: `behaviour_return`, and how much of it the environment's card does not cover."""
    return behaviour_return(settings, dataset) | recorded_outside(settings, dataset)


def recorded_outside(settings: RunSettings, dataset: OfflineDataset) -> dict[str, float]:
    """How much of the recording lies outside what the card declares (report/warnings.py).

    Returns:
        returns_recorded, and returns_outside of these; and where features are scaled observations_outside, the largest share of the observations in which a feature is beyond
        the clip, and observations_outside_feature, that feature.
    """
    found: dict[str, float] = {}
    card = settings.card
    if settings.plays and settings.evaluator is None:
        low, high = settings.played_range
        returns = discounted_returns(dataset, settings.discount)
        found = {"returns_recorded": len(returns), "returns_outside": int((~((returns >= low) & (returns <= high))).sum())}
    if card.clip >= WIDEST_CLIP:
        return found
    unclipped, outside = replace(card, clip=WIDEST_CLIP), np.zeros(card.width)
    for start in range(0, len(dataset), ROWS_AT_A_TIME):
        outside += (np.abs(unclipped.features(dataset.observations[start : start + ROWS_AT_A_TIME])) > card.clip * (1 + ROUNDING)).sum(0)
    feature = int(outside.argmax())
    return found | {"observations_outside": float(outside[feature] / len(dataset)), "observations_outside_feature": feature}
