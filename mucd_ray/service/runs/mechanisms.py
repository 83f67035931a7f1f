"""From what a user asks for to a mechanism, and a sentence for the certificate about where its constants come from."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from mucd_ray.certify.confidence.looks import effective_eta
from mucd_ray.certify.planning.bags import bag_of, bag_then_noise_of, enough_neighbours, fewest_parts, largest_bag, least_noise_in_bags, usual_bag_size
from mucd_ray.certify.planning.plan import plan, wanted_radius
from mucd_ray.certify.rounding import exactly
from mucd_ray.errors import MucdError
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.bag_then_noise import BagThenNoise
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.kinds import WITH_NOISE, AnyMechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.choices import Choices
from mucd_ray.words import counted

DEFAULT_CLIP_NORM = 0.1
CONDITIONAL = "The claim is conditional on what the user gave: it holds as stated if it was not chosen by looking at this dataset."
# Trajectories from which on they are what an attacker changes, where the user does not say: bags of them teach any learner on raw observations. The border lies
# between round numbers, as those of the public size do.
MANY_TRAJECTORIES = 18
DEFAULT_MECHANISMS = {"trajectory": Bag.kind, "source": Bag.kind, "transition": Mechanism.kind}
# The same where only the mechanism is given: noise averages over many transitions, and bags of few trajectories still teach a lot.
DEFAULT_UNITS = {Mechanism.kind: "transition", Bag.kind: "trajectory", BagThenNoise.kind: "trajectory", Partition.kind: "trajectory", Neighbours.kind: "trajectory"}
# Under noise: chosen on simulator recordings (Acrobot, CartPole) with seeds that no shipped example certifies. On bags: a common network and optimiser.
DEFAULT_LEARNER = Learner(algorithm="bc", hidden=(), optimiser="sgd", learning_rate=30.0, average=0.5)
PLAIN_LEARNER = Learner(algorithm="bc", hidden=(64, 64), optimiser="adam", learning_rate=0.001, average=0.5)
DEFAULT_LEARNERS = {Mechanism.kind: DEFAULT_LEARNER, Bag.kind: PLAIN_LEARNER, BagThenNoise.kind: DEFAULT_LEARNER, Partition.kind: PLAIN_LEARNER, Neighbours.kind: PLAIN_LEARNER}
# Share of the instances whose vote a planned bag or partition is to withstand.
AGREEMENT = 0.9
# Where the rate that suits cloning under noise does not: the best of 0.3, 1, 3, 10 and 30 at S = 110 on recordings with seed 101, of CartPole (Pendulum
# for td3-bc).
DEFAULT_RATES = {"dqn": 3.0, "double-dqn": 3.0, "qr-dqn": 10.0, "iql": 10.0, "c51": 10.0, "td3-bc": 0.3}
# Options that not every kind of mechanism reads, and the kinds that do.
ONLY = dict.fromkeys(("sample_rate", "noise_multiplier", "steps", "clip_norm"), WITH_NOISE) | {
    "bag_size": (Bag.kind, BagThenNoise.kind), "draws": (Bag.kind, BagThenNoise.kind), "parts": (Partition.kind,), "spread": (Partition.kind,), "fit": (Bag.kind, Partition.kind),
    "neighbours": (Neighbours.kind,), "metric": (Neighbours.kind,),
}
# Fields of `Fit` whose options have other names.
OF_FIT = {"steps": "train steps", "batch": "batch size"}


def default_fit(unit: str, algorithm: str, discrete: bool) -> dict:
    """What a bag's trajectories are to a learner: clones trust them by rank or, of continuous actions, imitate the better half; learners of values know good
    from bad by themselves."""
    if unit == "transition" or algorithm != "bc":
        return {}
    return {"graded": True} if discrete else {"top_share": 0.5}


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Mechanism and unit of a run, and what they are by default.

    Attributes:
        margin: how many trajectories may come or go until the default would be another; None where nothing followed from their number.
    """

    mechanism: str
    unit: str
    usual: dict[str, str | None]
    margin: int | None


def settled(request, trajectories: int, accountant: str = "tradeoff") -> Settled:
    """What a `Request` leaves open follows from what it says: options that only one mechanism reads, the unit, or at last whether trajectories are many."""
    many = trajectories >= MANY_TRAJECTORIES
    mechanism = request.mechanism or (Mechanism.kind if accountant != "tradeoff" else _implied(request))
    of_number = "trajectory" if many else "transition"
    usual_unit = "source" if request.source_key is not None else of_number if mechanism is None else DEFAULT_UNITS.get(mechanism, of_number)
    unit = request.unit or usual_unit
    nothing_said = mechanism is None and request.unit is None and request.source_key is None
    margin = trajectories - MANY_TRAJECTORIES if many else MANY_TRAJECTORIES - 1 - trajectories
    usual: dict[str, str | None] = {"unit": usual_unit, "mechanism": DEFAULT_MECHANISMS.get(unit)}
    return Settled(mechanism=mechanism or DEFAULT_MECHANISMS.get(unit, Mechanism.kind), unit=unit, usual=usual, margin=margin if nothing_said else None)


def _implied(request) -> str | None:
    said = [kinds for name, kinds in ONLY.items() if getattr(request, name) is not None]
    if said:
        # The first that reads all of them; where none does, `check_options` names what does not fit.
        return next((kind for kind in DEFAULT_UNITS if all(kind in kinds for kinds in said)), said[0][0])
    if request.learner is not None and request.learner.local != LocalUpdate():
        return Mechanism.kind
    return None if request.trainer is None else Bag.kind


def check_options(request) -> None:
    """Raise MucdError where an option is for another kind of mechanism than the one asked for, or the kind is unknown."""
    if request.mechanism not in DEFAULT_UNITS:
        raise MucdError(f"mechanism {request.mechanism!r} is unknown: use one of {', '.join(DEFAULT_UNITS)}")
    for name, kinds in ONLY.items():
        if request.mechanism not in kinds and getattr(request, name) is not None:
            what = ", ".join(OF_FIT.get(field, field.replace("_", " ")) for field in request.fit) if name == "fit" else name.replace("_", " ")
            raise MucdError(f"{what} is for --mechanism {' or '.join(kinds)}, not for {request.mechanism}: leave it out")


def planned(request, choices: Choices, declared: int, size: int, actions: int, usual: dict[str, str | None]) -> tuple[AnyMechanism, str, bool]:
    """(mechanism, sentence, whether anything of it follows from the rounded size of the data).

    Args:
        request: a `Request` that knows its mechanism and unit.
        declared: the public size from which constants may follow.
        size: the number of units there are, for refusals alone.
        actions: number of discrete actions, 2 if they are continuous.
        usual: see `Settled`.
    """
    given = _given(request, choices, usual)
    of_kind: dict[str, Callable[..., tuple[AnyMechanism, str, bool]]] = {
        Mechanism.kind: _gaussian, Bag.kind: _bag, BagThenNoise.kind: _bag_then_noise, Partition.kind: _partition, Neighbours.kind: _neighbours,
    }
    return of_kind[request.mechanism](request, choices, declared, size, actions, given)


def _gaussian(request, choices: Choices, declared: int, size: int, actions: int, given: list[str]) -> tuple[Mechanism, str, bool]:
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
    return replace(answer.mechanism, unit=request.unit, clip_norm=clip_norm), _plan_note(request, choices, declared, eta, given), True


def _bag(request, choices: Choices, declared: int, size: int, actions: int, given: list[str]) -> tuple[Bag, str, bool]:
    draws = request.draws or "fixed"
    if request.bag_size is not None:
        bag = bag_of(request.bag_size, unit=request.unit, draws=draws, units=declared)
        note = f"The bag size was given by the user. {CONDITIONAL}"
    else:
        eta = effective_eta(choices.eta, choices.looks, request.instances)
        bag = _withstanding(
            largest_bag, units=declared, radius=wanted_radius(declared, request.fraction), instances=request.instances, eta=eta, actions=actions, threat=choices.threat,
            unit=request.unit, draws=draws,
        )
        note = _plan_note(request, choices, declared, eta, given)
    bag.check(size)
    # A bag of a given size follows from nothing; the rate of Poisson draws does.
    return bag, note, request.bag_size is None or draws == "poisson"


def _withstanding(plan_of, **asked):
    """The plan with which a vote of less than all withstands the wanted fraction: half of a good return then does, too. With few instances only a unanimous one does."""
    try:
        return plan_of(**asked, agreement=AGREEMENT)
    except MucdError:
        return plan_of(**asked)


def _bag_then_noise(request, choices: Choices, declared: int, size: int, actions: int, given: list[str]) -> tuple[BagThenNoise, str, bool]:
    draws, eta = request.draws or "poisson", effective_eta(choices.eta, choices.looks, request.instances)
    asked = {"units": declared, "instances": request.instances, "eta": eta, "actions": actions, "threat": choices.threat, "unit": request.unit}
    radius = wanted_radius(declared, request.fraction)
    bag = bag_of(usual_bag_size(**asked, radius=radius) if request.bag_size is None else request.bag_size, unit=request.unit, draws=draws, units=declared)
    inner = {"sample_rate": request.sample_rate, "steps": request.steps, "clip_norm": DEFAULT_CLIP_NORM if request.clip_norm is None else request.clip_norm}
    if request.noise_multiplier is not None:
        if request.bag_size is None or request.sample_rate is None or request.steps is None:
            raise MucdError("--noise-multiplier needs --bag-size, --sample-rate and --steps beside it; or leave it out, and it is planned from --fraction")
        mechanism, note = bag_then_noise_of(bag, units=declared, noise_multiplier=request.noise_multiplier, **inner), f"The mechanism was given by the user. {CONDITIONAL}"
    else:
        mechanism, note = least_noise_in_bags(bag, **asked, radius=radius, **inner), _plan_note(request, choices, declared, eta, given)
    mechanism.check(size)
    return mechanism, note, True


def _partition(request, choices: Choices, declared: int, size: int, actions: int, given: list[str]) -> tuple[Partition, str, bool]:
    if request.parts is not None:
        partition, note = Partition(unit=request.unit, parts=request.parts, spread=1 if request.spread is None else request.spread), f"The number of parts was given by the user. {CONDITIONAL}"
        if request.spread is not None:
            note = note.replace("was", "and how many of them hold a unit were", 1)
    else:
        eta = effective_eta(choices.eta, choices.looks, request.instances)
        partition = _withstanding(
            fewest_parts, units=declared, radius=wanted_radius(declared, request.fraction), instances=request.instances, eta=eta, actions=actions, threat=choices.threat,
            unit=request.unit,
        )
        if request.spread is not None:
            # As large parts as without, and as many more of them (Wang et al. 2022: kd of them): what r units reach is the same share.
            partition = Partition(unit=request.unit, parts=request.spread * partition.parts, spread=request.spread)
        note = _plan_note(request, choices, declared, eta, given)
    partition.check(size)
    return partition, note, request.parts is None


def _neighbours(request, choices: Choices, declared: int, size: int, actions: int, given: list[str]) -> tuple[Neighbours, str, bool]:
    if request.trainer is not None or request.trusted is not None:
        raise MucdError("neighbours train nothing: leave trainers from outside and trusted data out")
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


def _plan_note(request, choices: Choices, declared: int, eta: float, given: list[str]) -> str:
    return (
        f"The mechanism was planned from the declared size {declared}, the wanted fraction {exactly(request.fraction)}, {counted(request.instances, 'instance')}, "
        f"eta {exactly(eta)} and the {choices.threat} threat alone" + (f", with {', '.join(given)} given by the user. {CONDITIONAL}" if given else ".")
    )


def _given(request, choices: Choices, usual: dict[str, str | None]) -> list[str]:
    """What a planned mechanism has from the user. A value that is the package's default shapes nothing, whoever wrote it down.

    The declared size is left out: `size_note` speaks about it. Accountant, band and inference plan nothing.
    """
    expected = {field.name: field.default for kind in (type(request), Choices) for field in fields(kind)} | usual
    asked = vars(request) | vars(choices)
    names = ("mechanism", "unit", "fraction", "instances", "eta", "threat", "sample_rate", "steps", "clip_norm", "bag_size", "draws", "spread", "looks")
    return [name.replace("_", " ") for name in names if asked[name] != expected[name]]
