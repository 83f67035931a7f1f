"""What is certified of a run: the choices that may differ between certificates of the same instances."""

from dataclasses import dataclass

from mucd_ray.certify.confidence.proportions import check_eta
from mucd_ray.certify.file.results import check_choices
from mucd_ray.certify.file.rules import MOST_ACTIONS, MOST_COUNTS
from mucd_ray.certify.planning.goal import Goal
from mucd_ray.certify.rules import RULES
from mucd_ray.errors import MucdError
from mucd_ray.mechanism.gaussian.mechanism import Mechanism
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.service.runs.settings import RunSettings

# From what a discrete action is certified: the instances' votes, or their probability scores.
INFERENCES = ("votes", "scores")
# Whose return is certified.
POLICIES = ("instance", "vote")
MOST = 1 << 20
# Steps that count for a rule over time, where nobody says how many.
WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is certified: these may differ between certificates of one run. Checked before anything is trained.

    `looks` "fixed": the number of instances is decided before training. "anytime": results are looked at on the way, and training
    stops when `goal` (certify/planning/goal.py) is met.

    `policy` "instance": one instance drawn at random. "vote": beside it the voted policy, in so many `episodes`, each followed to at most so many `nodes` beside its own path.

    `rule`: beside it the policy of a vote rule (certify/rules), in so many `episodes`, and with `policy` "vote" it is the one that is followed; `window`: how many steps count for one over time. `never`: an action, counted from 0, that the rule's policy, or the
    voted one, shall be kept from.
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
    rule: str | None = None
    window: int | None = None
    never: int | None = None

    def __post_init__(self):
        check_eta(self.eta)
        check_choices(self.threat, self.accountant, self.band, self.looks)
        if self.inference not in INFERENCES:
            raise MucdError(f"inference {self.inference!r} is unknown: use one of {', '.join(INFERENCES)}")
        if self.goal is not None:
            Goal.parse(self.goal)
        if self.policy not in POLICIES:
            raise MucdError(f"policy {self.policy!r} is unknown: use one of {', '.join(POLICIES)}")
        for name, least in (("episodes", 1), ("nodes", 1)):
            if not (type(getattr(self, name)) is int and least <= getattr(self, name) <= MOST):
                raise MucdError(f"{name} {getattr(self, name)} must be a whole number from {least} to {MOST:,}")
        if self.rule is not None and not (isinstance(self.rule, str) and self.rule in RULES):
            raise MucdError(f"rule {self.rule!r:.100} is unknown: use one of {', '.join(RULES)}")
        windowed = [name for name, rule in RULES.items() if rule.windowed]
        if self.window is not None and (self.rule not in windowed or not (type(self.window) is int and 1 <= self.window <= MOST)):
            raise MucdError(f"window {self.window!r:.100} must be a whole number of steps, at least 1, and is for rule {' or '.join(windowed)}" + ("" if self.rule in windowed else ": leave it out"))
        if self.never is not None and (self.rule is None and self.policy != "vote" or not (type(self.never) is int and self.never >= 0)):
            raise MucdError(f"never {self.never!r:.100} must be an action, counted from 0, of a vote rule or of the voted policy: give --rule or --policy vote")

    @property
    def rule_window(self) -> int | None:
        """Steps that count for the rule; None where the past does not."""
        return (self.window or WINDOW) if self.rule is not None and RULES[self.rule].windowed else None

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
        if self.rule is not None:
            _check_rule(self.rule, settings)
        if self.never is not None and not self.never < (settings.actions or 0):
            raise MucdError(f"never {self.never} is no action of {settings.dataset}, which has {settings.actions or 'continuous ones'}, counted from 0")
        if self.goal is not None:
            Goal.parse(self.goal).check(settings.units, settings.radius_cap(self.threat), discrete=bool(settings.actions))


def _check_rule(name: str, settings: RunSettings) -> None:
    """Raise MucdError where the votes of all parts along episodes are not to be had."""
    mechanism, who = settings.mechanism, f"vote rule {name}"
    if not isinstance(mechanism, Partition):
        raise MucdError(f"{who} is about the votes of all parts of a partition, and this run has the mechanism {mechanism.kind}: leave --rule out, or start a run with --mechanism partition")
    if settings.trainer is not None:
        raise MucdError(f"{who} needs one policy for each part, and {settings.trainer.name} trains every instance for itself: leave --rule out")
    if not settings.plays or not settings.rollouts or settings.evaluator is not None:
        raise MucdError(f"{who} plays episodes of its own in the environment, and returns of this run are none: leave --rule out")
    if not settings.actions or settings.components is not None:
        raise MucdError(f"{who} takes the one of a number of actions that the votes say, and those of {settings.dataset} are {'continuous' if not settings.actions else 'of several components'}: leave --rule out")
    if settings.mask is not None:
        raise MucdError(f"{who} does not know which actions a mask allows: leave --rule out, or the mask, with --observation-keys")
    if RULES[name].buckets and mechanism.spread == 1:
        raise MucdError(f"{who} is for units that are in several parts (mucd run --mechanism partition --spread 2); where each is in one it is the same as --rule parl")
    if settings.actions > MOST_ACTIONS or settings.actions * mechanism.parts > MOST_COUNTS:
        raise MucdError(f"{settings.actions} actions and {mechanism.parts} parts are more votes than a rule counts: at most {MOST_ACTIONS} actions, and times parts {MOST_COUNTS:,}")
