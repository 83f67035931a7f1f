"""From what a user asks for to a mechanism, and a sentence for the certificate about where its constants come from."""

from dataclasses import fields, replace

from mucd_ray.certify.confidence.looks import effective_eta
from mucd_ray.certify.planning.bags import bag_of, enough_neighbours, fewest_parts, largest_bag
from mucd_ray.certify.planning.plan import plan, wanted_radius
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import AnyMechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.choices import Choices
from mucd_ray.words import counted

DEFAULT_CLIP_NORM = 0.1
CONDITIONAL = "The claim is conditional on what the user gave: it holds as stated if it was not chosen by looking at this dataset."
# What an attacker changes, where the user does not say: noise averages over many transitions, and bags of few trajectories still teach a lot.
DEFAULT_UNITS = {Mechanism.kind: "transition", Bag.kind: "trajectory", Partition.kind: "trajectory", Neighbours.kind: "trajectory"}
# Under noise: chosen on simulator recordings (Acrobot, CartPole) with seeds that no shipped example certifies. On bags: a common network and optimiser.
DEFAULT_LEARNER = Learner(algorithm="bc", hidden=(), optimiser="sgd", learning_rate=30.0, average=0.5)
PLAIN_LEARNER = Learner(algorithm="bc", hidden=(64, 64), optimiser="adam", learning_rate=0.001, average=0.5)
DEFAULT_LEARNERS = {Mechanism.kind: DEFAULT_LEARNER, Bag.kind: PLAIN_LEARNER, Partition.kind: PLAIN_LEARNER, Neighbours.kind: PLAIN_LEARNER}
# Where the rate that suits cloning under noise does not: the best of 0.3, 1, 3, 10 and 30 at S = 110 on recordings with seed 101, of CartPole (Pendulum
# for td3-bc).
DEFAULT_RATES = {"dqn": 3.0, "double-dqn": 3.0, "qr-dqn": 10.0, "iql": 10.0, "c51": 10.0, "td3-bc": 0.3}
# Options that not every kind of mechanism reads, and the kinds that do.
ONLY = dict.fromkeys(("sample_rate", "noise_multiplier", "steps", "clip_norm"), (Mechanism.kind,)) | {
    "bag_size": (Bag.kind,), "draws": (Bag.kind,), "parts": (Partition.kind,), "fit": (Bag.kind, Partition.kind),
    "neighbours": (Neighbours.kind,), "metric": (Neighbours.kind,),
}


def default_top_share(unit: str, algorithm: str) -> float:
    """Which share of a bag's trajectories is learned from: clones imitate the better half; learners of values know good from bad by themselves."""
    return 0.5 if unit == "trajectory" and algorithm == "bc" else 1.0


def check_options(request) -> None:
    """Raise MucdError where an option is for another kind of mechanism than the one asked for, or the kind is unknown."""
    if request.mechanism not in DEFAULT_UNITS:
        raise MucdError(f"mechanism {request.mechanism!r} is unknown: use one of {', '.join(DEFAULT_UNITS)}")
    for name, kinds in ONLY.items():
        if request.mechanism not in kinds and getattr(request, name) is not None:
            what = "train steps, batch size or top share" if name == "fit" else name.replace("_", " ")
            raise MucdError(f"{what} is for --mechanism {' or '.join(kinds)}, not for {request.mechanism}: leave it out")


def planned(request, choices: Choices, declared: int, size: int, actions: int) -> tuple[AnyMechanism, str, bool]:
    """(mechanism, sentence, whether anything of it follows from the rounded size of the data).

    Args:
        request: a `Request` that knows its unit.
        declared: the public size from which constants may follow.
        size: the number of units there are, for refusals alone.
        actions: number of discrete actions, 2 if they are continuous.
    """
    return {Mechanism.kind: _gaussian, Bag.kind: _bag, Partition.kind: _partition, Neighbours.kind: _neighbours}[request.mechanism](request, choices, declared, size, actions)


def _gaussian(request, choices: Choices, declared: int, size: int, actions: int) -> tuple[Mechanism, str, bool]:
    clip_norm = DEFAULT_CLIP_NORM if request.clip_norm is None else request.clip_norm
    if request.noise_multiplier is not None:
        if request.sample_rate is None or request.steps is None:
            raise MucdError("--noise-multiplier needs --sample-rate and --steps beside it; or leave it out, and it is planned from --fraction")
        mechanism = Mechanism(
            unit=request.unit, sample_rate=request.sample_rate, noise_multiplier=request.noise_multiplier, clip_norm=clip_norm,
            steps=request.steps, normaliser=request.sample_rate * declared,
        )
        return mechanism, f"The mechanism was given by the user. {CONDITIONAL}", True
    eta = effective_eta(choices.eta, choices.looks, request.instances)
    answer = plan(
        units=declared, fraction=request.fraction, instances=request.instances, eta=eta, actions=actions, threat=choices.threat,
        accountant="tradeoff", sample_rate=request.sample_rate, **({} if request.steps is None else {"steps": request.steps}),
    )
    return replace(answer.mechanism, unit=request.unit, clip_norm=clip_norm), _plan_note(request, choices, declared, eta), True


def _bag(request, choices: Choices, declared: int, size: int, actions: int) -> tuple[Bag, str, bool]:
    draws = request.draws or "fixed"
    if request.bag_size is not None:
        bag = bag_of(request.bag_size, unit=request.unit, draws=draws, units=declared)
        note = f"The bag size was given by the user. {CONDITIONAL}"
    else:
        eta = effective_eta(choices.eta, choices.looks, request.instances)
        bag = largest_bag(
            units=declared, radius=wanted_radius(declared, request.fraction), instances=request.instances, eta=eta, actions=actions, threat=choices.threat, unit=request.unit,
            draws=draws,
        )
        note = _plan_note(request, choices, declared, eta)
    bag.check(size)
    # A bag of a given size follows from nothing; the rate of Poisson draws does.
    return bag, note, request.bag_size is None or draws == "poisson"


def _partition(request, choices: Choices, declared: int, size: int, actions: int) -> tuple[Partition, str, bool]:
    if request.parts is not None:
        partition, note = Partition(unit=request.unit, parts=request.parts), f"The number of parts was given by the user. {CONDITIONAL}"
    else:
        eta = effective_eta(choices.eta, choices.looks, request.instances)
        partition = fewest_parts(
            units=declared, radius=wanted_radius(declared, request.fraction), instances=request.instances, eta=eta, actions=actions, threat=choices.threat, unit=request.unit
        )
        note = _plan_note(request, choices, declared, eta)
    partition.check(size)
    return partition, note, request.parts is None


def _neighbours(request, choices: Choices, declared: int, size: int, actions: int) -> tuple[Neighbours, str, bool]:
    if request.learner is not None and replace(request.learner, local=LocalUpdate()) != PLAIN_LEARNER or request.instances != type(request).instances:
        raise MucdError("neighbours train nothing: leave learner, its options and --instances out (--rollouts says how many episodes are played)")
    if request.learner is not None and request.learner.local != LocalUpdate(min_return=request.learner.local.min_return):
        raise MucdError("neighbours make no local steps: of these options they have --min-return alone")
    metric = request.metric or "declared"
    if request.neighbours is not None:
        mechanism, note = Neighbours(unit=request.unit, neighbours=request.neighbours, metric=metric), f"The number of neighbours was given by the user. {CONDITIONAL}"
    else:
        radius = wanted_radius(declared, request.fraction)
        mechanism = enough_neighbours(units=declared, radius=radius, unit=request.unit, metric=metric)
        note = f"The number of neighbours, {mechanism.neighbours}, was planned for r = {radius}, the wanted fraction {exactly(request.fraction)} of the declared size {declared}."
        note += "" if request.fraction == type(request).fraction else f" The fraction was given by the user. {CONDITIONAL}"
    mechanism.check(size)
    return mechanism, note + (f" The metric was given by the user. {CONDITIONAL}" if request.metric else ""), request.neighbours is None


def _plan_note(request, choices: Choices, declared: int, eta: float) -> str:
    given = _given(request, choices)
    return (
        f"The mechanism was planned from the declared size {declared}, the wanted fraction {exactly(request.fraction)}, {counted(request.instances, 'instance')}, "
        f"eta {exactly(eta)} and the {choices.threat} threat alone" + (f", with {', '.join(given)} given by the user. {CONDITIONAL}" if given else ".")
    )


def _given(request, choices: Choices) -> list[str]:
    """What a planned mechanism has from the user. A value that is the package's default shapes nothing, whoever wrote it down.

    The declared size is left out: `size_note` speaks about it. Accountant, band and inference plan nothing.
    """
    usual = {field.name: field.default for kind in (type(request), Choices) for field in fields(kind)} | {"unit": DEFAULT_UNITS[request.mechanism], "draws": None}
    asked = vars(request) | vars(choices)
    names = ("mechanism", "unit", "fraction", "instances", "eta", "threat", "sample_rate", "steps", "clip_norm", "draws", "looks")
    return [name.replace("_", " ") for name in names if asked[name] != usual[name]]
