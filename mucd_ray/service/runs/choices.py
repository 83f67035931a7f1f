"""What is certified of a run: the choices that may differ between certificates of the same instances."""

from dataclasses import dataclass

from mucd_ray.certify.confidence.proportions import check_eta
from mucd_ray.certify.file.results import check_choices
from mucd_ray.certify.planning.goal import Goal
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.service.runs.settings import RunSettings

# From what a discrete action is certified: the instances' votes, or their probability scores.
INFERENCES = ("votes", "scores")
# Whose return is certified.
POLICIES = ("instance", "vote")
MOST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is certified: these may differ between certificates of one run. Checked before anything is trained.

    `looks` "fixed": the number of instances is decided before training. "anytime": results are looked at on the way, and training
    stops when `goal` (certify/planning/goal.py) is met.

    `policy` "instance": one instance drawn at random. "vote": beside it the voted policy, in so many `episodes`, each followed to at most so many `nodes` beside its own path.
    """

    eta: float = 0.001
    threat: str = "symmetric"
    accountant: str = "tradeoff"
    band: str = "order-statistic"
    inference: str = "votes"
    looks: str = "fixed"
    goal: str | None = None
    policy: str = "instance"
    episodes: int = 100
    nodes: int = 500

    def __post_init__(self):
        check_eta(self.eta)
        check_choices(self.threat, self.accountant, self.band, self.looks)
        if self.inference not in INFERENCES:
            raise MucdError(f"inference {self.inference!r} is unknown: use one of {', '.join(INFERENCES)}")
        if self.goal is not None:
            Goal.parse(self.goal)
        if self.policy not in POLICIES:
            raise MucdError(f"policy {self.policy!r} is unknown: use one of {', '.join(POLICIES)}")
        for name, least in (("episodes", 1), ("nodes", 0)):
            if not (type(getattr(self, name)) is int and least <= getattr(self, name) <= MOST):
                raise MucdError(f"{name} {getattr(self, name)} must be a whole number from {least} to {MOST:,}")

    def check(self, settings: RunSettings) -> None:
        """Raise MucdError if a run with these settings cannot be certified so."""
        if settings.mechanism.kind != Mechanism.kind and self.accountant != "tradeoff":
            raise MucdError(f"accountant {self.accountant!r} is for the {Mechanism.kind} mechanism: a {settings.mechanism.kind} has one exact guarantee, 'tradeoff'")
        if settings.mechanism.kind == Neighbours.kind and (self.inference, self.looks, self.goal) != ("votes", "fixed", None):
            raise MucdError("neighbours leave nothing to chance: there is nothing to look at again, no goal to train for, and no scores; leave --until, --looks and --inference out")
        if self.inference == "scores" and not settings.actions:
            raise MucdError("inference 'scores' needs discrete actions, these are continuous: leave --inference out")
        if not settings.rollouts and self.goal is not None and Goal.parse(self.goal).name != "actions":
            raise MucdError(f"goal {self.goal} is about returns, and without an environment there are none: ask for actions, such as actions>=0.9@0.01")
        if settings.evaluator is not None and self.policy == "vote":
            raise MucdError(f"policy 'vote' is about returns in the environment, and this run has scores of {settings.evaluator.name}: leave --policy out")
        if settings.components and self.policy == "vote":
            raise MucdError(
                "policy 'vote' follows every action that poisoned votes could choose, and here these are combinations of several components' values: leave --policy out; the actions themselves are certified without it"
            )
        if settings.mask is not None and self.policy == "vote":
            raise MucdError("policy 'vote' follows every action that poisoned votes could choose, and does not know which of them a mask allows: leave --policy out, or the mask, with --observation-keys")
        if not settings.plays and self.policy == "vote":
            raise MucdError("policy 'vote' plays episodes of the voted policy, and there is no environment: leave --policy out; its actions are certified without it")
        if self.goal is not None:
            Goal.parse(self.goal).check(settings.units, settings.radius_cap(self.threat), discrete=bool(settings.actions))
