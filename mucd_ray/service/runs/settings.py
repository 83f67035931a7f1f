"""What a run is: everything its instances depend on, as one JSON file."""

import functools
import hashlib
import importlib.metadata
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

import mucd_ray
from mucd_ray import plugins
from mucd_ray.certify.file.evidence import LARGEST_VALUE, LEAST_WIDTH
from mucd_ray.certify.planning.size import round_size
from mucd_ray.certify.rounding import exactly
from mucd_ray.data.environments.cards import EnvironmentCard
from mucd_ray.data.environments.declared import DeclaredCard, card_from
from mucd_ray.data.formats.metadata import MOST_TEXT, read_space
from mucd_ray.data.spaces import MOST_VALUES, Actions, Observations
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import MaskedPolicies, Policies
from mucd_ray.files import check_types, printable
from mucd_ray.learn.algorithms import algorithm_for
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.trainers.built_in import Fit
from mucd_ray.learn.units import check_unit
from mucd_ray.mechanism import evaluator, outside
from mucd_ray.mechanism.bag import Bag
from mucd_ray.mechanism.evaluator import Evaluator
from mucd_ray.mechanism.kinds import WITH_NOISE, AnyMechanism, from_values, to_values
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.outside import Outside
from mucd_ray.mechanism.partition import Partition
from mucd_ray.plugins import Plugin
from mucd_ray.words import counted

Kind = TypeVar("Kind")
DTYPES = ("float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
# Mechanisms whose learners may be given several observations of a trajectory at a time.
WITH_HISTORY = (Bag.kind, Partition.kind)
# States, held-out instances, episodes of an instance: what a certificate or a trainer could still hold.
MOST = 1 << 20
# Votes are stored in 16 bits.
MOST_ACTIONS = (1 << 15) - 1
DIGEST_COMMAND = 'python -c "from mucd_ray.service.runs.settings import code_digest; print(code_digest())"'


# Fields that runs of earlier versions do not have, where they are None.
UNKNOWN_BEFORE = ("source_key", "states_from", "evaluator", "declared_actions", "declared_observations", "mask", "components", "labels_sha256")
WITHOUT_STATES = (
    "without an environment no policy meets states by itself: give those at which actions are to be certified with --states-file FILE, or draw them from data that you trust with --trusted-states DATASET. "
    "Not from {dataset}: whoever poisons it would choose the states at which the claim is made"
)
# Fields of `Fit` that runs of earlier versions do not have.
FIT_AS_BEFORE = (("entries", None), ("mirrored", False))


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Public settings of a run; two runs with equal settings and secret train bit-identical instances.

    Attributes:
        dataset, fingerprint, units: name, content hash and number of units of the dataset.
        card: the environment's public facts, or a `DeclaredCard` where there is none.
        actions, dimensions: number of discrete actions, or of dimensions of continuous ones (then there are no votes); the other is 0.
        components: of actions of several components, each voted on by itself, how many values each of them may have; then `actions` is how many these are in all. None where actions are voted on as a whole.
        action_bounds: public (low [d], high [d]) of continuous actions, from the card's environment; None if discrete or unbounded.
        rollouts, discount: a return is the mean over `rollouts` episodes of sum_t discount^t r_t; with 0 of them there are no returns, and actions alone are certified.
        mechanism, learner: how an instance is trained.
        fit: how a policy is fitted to a bag or a part; None where the mechanism is noise, or the trainer from outside.
        declared_observations: the Dict space of an observation with the keys that policies see, in Minari's JSON, by which one may be served; else None.
        declared_actions: the environment's action space in Minari's JSON, where actions are numbers of its combinations, its components counted from 0, or its flattened rows (data/spaces.py); else None.
        mask: in a flattened observation the first of the entries that tell which actions are allowed (`MaskedPolicies`), among which alone policies choose; None where all are.
        evaluator: of the user's, whose score takes the place of the return; then `rollouts` scores are asked for and their mean counts. None: episodes in the environment.
        trainer: from outside; None: the package's own. Its policies take observation_dtype.
        first_action: the number of the lowest discrete action; votes and outputs count from it.
        declared_size: the public size from which constants of the mechanism may follow; None if none does.
        size_margin: insertions or removals that leave the declared size as it is, or None if the user declared it.
        choice_margin: trajectories that may come or go and leave unit and mechanism the default ones, or None if the user said something about them.
        states, held_out: how many states are voted on, and how many instances, which do not vote, choose them.
        trusted: (name, content hash) of the dataset that the user trusts, a policy trained on which is a yardstick; None without one.
        states_sha256: hash of the user's states, if there were any; and states_from: (name, content hash) of the dataset he trusts, if they were drawn from one.
        labels_sha256: hash of the states and of their true labels (`labelled.content_of_test`), where a dataset of labelled images came with some; these are then what counts as right.
        source_key: the recorded key that tells the source of a trajectory, where units are sources; else None.
        code: digest of the code that trains and evaluates (`code_digest`). Instances of other code would not be draws of the same policy.
        condition: what every claim about this run depends on that nothing accounts for (certify/file/evidence.py), or None.
        imports: modules that the user had imported before the environment was made. Only what he names again is: `check_imports`.
        plugins: those of other packages that take part, by their names and hashes: another installed one stops the run.
        version: of the package with which the run began, for people: `code` decides what may be mixed. "" in runs of earlier versions.
        assumptions: sentences about how the constants were chosen, repeated in every certificate.
    """

    dataset: str
    fingerprint: str
    units: int
    card: EnvironmentCard
    actions: int
    dimensions: int
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None
    mechanism: AnyMechanism
    learner: Learner
    declared_size: int | None
    size_margin: int | None
    choice_margin: int | None = None
    rollouts: int = 1
    discount: float = 1.0
    states: int = 200
    held_out: int = 16
    states_sha256: str | None = None
    states_from: tuple[str, str] | None = None
    labels_sha256: str | None = None
    source_key: str | None = None
    code: str = ""
    fit: Fit | None = None
    trainer: Outside | None = None
    evaluator: Evaluator | None = None
    observation_dtype: str = "float32"
    first_action: int = 0
    declared_actions: str | None = None
    declared_observations: str | None = None
    mask: int | None = None
    components: tuple[int, ...] | None = None
    condition: str | None = None
    trusted: tuple[str, str] | None = None
    imports: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()
    version: str = ""
    assumptions: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("units", "actions", "dimensions", "declared_size", "size_margin", "choice_margin", "states", "held_out", "rollouts", "first_action"):
            value = getattr(self, name)
            if type(value) is not int and not (value is None and name in ("declared_size", "size_margin", "choice_margin")):
                raise MucdError(f"{name.replace('_', ' ')} {value!r:.100} must be a whole number")
        if not all(isinstance(text, str) for text in (self.dataset, self.fingerprint, self.code, self.version, *self.imports, *self.assumptions)):
            raise MucdError("dataset, fingerprint, code, version, imports and assumptions must be texts")
        # `verify` refuses a certificate with any other, when all is trained.
        for text in self.assumptions:
            if not text.isprintable():
                raise MucdError(f"assumption {text!r:.300} must be one line of printable text: write what you say by --chosen so")
        if not self.card.source.isprintable():
            raise MucdError(f"card of {self.card.env_id}: source {self.card.source!r:.300} must be one line of printable text: it becomes an assumption of the certificate")
        if self.trusted is not None and not (len(self.trusted) == 2 and all(isinstance(text, str) for text in self.trusted)):
            raise MucdError(f"trusted {self.trusted!r:.100} must be the name and the content hash of a dataset")
        if self.actions > MOST_ACTIONS:
            raise MucdError(f"{self.actions:,} actions are more than {MOST_ACTIONS:,}: votes are counted for each of them, give a space of fewer")
        if min(self.actions, self.dimensions) != 0 or max(self.actions, self.dimensions) < 1:
            raise MucdError(f"actions {self.actions} and dimensions {self.dimensions}: one of them must be 0, the other at least 1")
        if self.components is not None and not (self.components and all(type(values) is int and 1 <= values <= MOST_VALUES for values in self.components) and sum(self.components) == self.actions <= MOST_VALUES):
            raise MucdError(f"components {self.components!r:.100} must be how many values each of them may have, {self.actions} in all and at most {MOST_VALUES:,}")
        if self.action_bounds is not None and not _are_bounds(self.action_bounds, self.dimensions):
            raise MucdError(f"action bounds {self.action_bounds!r:.100} must be two finite numbers for each of {self.dimensions} dimensions, the lower first")
        for name in ("states", "held_out", "rollouts"):
            least = 0 if name == "rollouts" and not self.plays and self.evaluator is None else 1
            if not least <= getattr(self, name) <= MOST:
                raise MucdError(f"{name.replace('_', ' ')} {getattr(self, name)} must be at least {least}, and at most {MOST:,}")
        if not self.plays:
            self._check_without_environment()
        if self.evaluator is not None and (self.discount != 1 or self.mechanism.kind == Neighbours.kind):
            raise MucdError(
                f"discount {self.discount} is of rewards, and --evaluator {self.evaluator.name} gives scores: leave it out" if self.discount != 1
                else f"--evaluator {self.evaluator.name} is for policies that are trained; neighbours train nothing, and their certificate is about episodes: use --mechanism bag or partition"
            )
        if self.states_from is not None and not (len(self.states_from) == 2 and all(isinstance(text, str) for text in self.states_from)):
            raise MucdError(f"states from {self.states_from!r:.100} must be the name and the content hash of a dataset")
        if self.labels_sha256 is not None and not (self.states_sha256 and re.fullmatch("[0-9a-f]{64}", self.labels_sha256)):
            raise MucdError(f"labels_sha256 {self.labels_sha256!r:.100} must be a SHA-256, of states of the user's")
        if self.observation_dtype not in DTYPES or abs(self.first_action) > 2**31:
            raise MucdError(f"observation dtype {self.observation_dtype!r:.100} must be one of {', '.join(DTYPES)}, and first action {self.first_action} within 32 bits")
        if self.declared_actions is not None and (self.environment_actions.space.shape != ((self.dimensions or len(self.components),) if self.dimensions or self.components else ()) or self.environment_actions.components != (self.components or ())):
            raise MucdError(f"declared actions {self.declared_actions!r:.100} do not fit {self.actions or self.dimensions} actions or dimensions")
        if self.declared_observations is not None and self.environment_observations.space.shape != tuple(self.card.observation_shape):
            raise MucdError(f"declared observations {self.declared_observations!r:.100} do not have the shape {tuple(self.card.observation_shape)} of the card")
        if self.mask is not None and not (type(self.mask) is int and self.actions and not self.components and 0 <= self.mask <= self.card.width - self.actions and self.mechanism.kind in WITH_HISTORY and self.card.features_source()["source"] == "raw"):
            raise MucdError(f"mask {self.mask!r:.100} must be the place of the mask of discrete actions in raw observations, with --mechanism {' or '.join(WITH_HISTORY)}")
        if self.trainer is not None and self.mechanism.kind in WITH_NOISE:
            raise MucdError(f"{self.trainer.option} {self.trainer.name} is not trained with noise, which would have to be added inside it: use --mechanism bag or partition")
        if (self.fit is None) != (self.mechanism.kind in WITH_NOISE or self.trainer is not None):
            raise MucdError(f"fit {self.fit} does not go with a mechanism of kind {self.mechanism.kind}: bags and parts have one, noise has none")
        if (self.source_key is not None) != (self.mechanism.unit == "source"):
            raise MucdError(f"source key {self.source_key!r:.100} does not go with units of one {self.mechanism.unit}: sources have one, and nothing else has")
        if self.source_key is not None and not (isinstance(self.source_key, str) and self.source_key.isprintable() and len(self.source_key) <= MOST_TEXT):
            raise MucdError(f"source key {self.source_key!r:.100} must be a printable text of at most {MOST_TEXT} characters")
        low, high = self.return_range or (0.0, 1.0)
        largest = max(abs(low), abs(high))
        # No certificate could be made, when all is trained.
        if largest > LARGEST_VALUE or high - low < LEAST_WIDTH * largest:
            whose = f"card of {self.card.env_id}: returns in" if self.evaluator is None else "--score-range: scores in"
            raise MucdError(f"{whose} [{low}, {high}] must lie within +-{LARGEST_VALUE:g}, in a range wider than {LEAST_WIDTH:g} of its ends: shift or rescale it")
        check_history(self.card.history, self.mechanism.kind, self.mechanism.unit)
        check_unit(self.learner, self.mechanism.unit)
        if (algorithm_for(self.learner.algorithm, bool(self.actions), self.components or ()).conditioned or self.learner.network == "transformer") and self.trainer is None and (self.fit is None or self.mechanism.unit == "transition"):
            raise MucdError(
                f"algorithm {self.learner.algorithm!r} with a {self.learner.network} network reads whole trajectories, and is for --mechanism {' or '.join(WITH_HISTORY)} with --unit trajectory "
                f"or source, not for {self.mechanism.kind} with --unit {self.mechanism.unit}"
            )
        if self.trainer is None:
            self.problem  # noqa: B018  refuses what does not fit together before a run folder is made

    def _check_without_environment(self) -> None:
        if self.rollouts and self.evaluator is None:
            raise MucdError(f"{counted(self.rollouts, 'rollout')} cannot be played without an environment: leave --rollouts out")
        if self.discount != 1 and self.evaluator is None:
            raise MucdError(f"discount {self.discount} says nothing without returns: leave it out")
        if not self.columns and self.evaluator is None:
            raise MucdError(f"the actions of {self.dataset} are declared without bounds, so none can be certified, and without an environment nothing else is: declare bounds, or use discrete actions")
        if self.states_sha256 is None:
            raise MucdError(WITHOUT_STATES.format(dataset=self.dataset))

    @functools.cached_property
    def problem(self) -> Problem:
        """What is learned."""
        return Problem(
            learner=self.learner, inputs=self.card.width, actions=self.actions or self.dimensions, discrete=bool(self.actions),
            components=self.components or (), action_bounds=self.action_bounds, shape=tuple(self.card.observation_shape), history=self.card.history,
            mirror=self.card.mirror if self.fit and self.fit.mirrored else None,
        )

    @functools.cached_property
    def environment_observations(self) -> Observations | None:
        """How one observation, a dictionary, is joined, where that is known."""
        space = None if self.declared_observations is None else read_space(self.declared_observations, "observation_space", "the settings")
        return None if space is None else Observations.of(space, self.card.observation_keys)

    @functools.cached_property
    def environment_actions(self) -> Actions | None:
        """How the environment's actions are counted, where that is not as it declares them."""
        return None if self.declared_actions is None else Actions(declared=read_space(self.declared_actions, "action_space", "the settings"))

    def masked(self, policies: Policies) -> Policies:
        """Policies of this run as they act."""
        return policies if self.mask is None else MaskedPolicies(policies, self.mask)

    @property
    def features_source(self) -> dict:
        """What policies see, as a certificate says it (certify/file/evidence.py)."""
        return self.card.features_source() | ({} if self.mask is None else {"mask": True})

    @property
    def declared_by_card(self) -> dict[str, int | float]:
        """Those of the learner's settings that the environment's card declares, by name."""
        used = {} if self.fit is None else {"entries": self.fit.entries, "learning_rate": self.learner.learning_rate}
        return {name: value for name, value in constants_of(self.card, self.mechanism.kind, self.learner.network).items() if used.get(name) == value}

    @property
    def card_note(self) -> str:
        """These settings in words; "" where there are none."""
        return ", ".join(f"{name.replace('_', ' ')} {exactly(value)}" for name, value in self.declared_by_card.items())

    @property
    def trusted_unit(self) -> str:
        """As what trusted data are read: nobody's key is asked of them."""
        return "trajectory" if self.mechanism.unit == "source" else self.mechanism.unit

    def mechanism_of(self, kind: type[Kind]) -> Kind:
        """The mechanism of a run that has one of this kind."""
        assert isinstance(self.mechanism, kind)
        return self.mechanism

    @property
    def plays(self) -> bool:
        """Whether there is an environment."""
        return not isinstance(self.card, DeclaredCard)

    @property
    def clips(self) -> bool:
        """Whether episodes' returns are clipped into their range."""
        return self.card.clip_returns and self.evaluator is None

    @property
    def return_range(self) -> tuple[float, float] | None:
        """Public bounds of a (discounted) return, or of a score; None where there are neither."""
        if self.evaluator is not None:
            return self.evaluator.low, self.evaluator.high
        return self.card.discounted_range(self.discount) if self.rollouts else None

    @property
    def judged(self) -> tuple[int, int]:
        """(the most actions, or values of a component, among which votes decide; how many decisions at a state share eta)."""
        return (max(self.components), len(self.components)) if self.components else (self.actions, 1)

    @property
    def played_range(self) -> tuple[float, float]:
        """That of a run with returns or scores."""
        found = self.return_range
        assert found is not None
        return found

    @property
    def action_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of actions that have some, [d] both."""
        assert self.action_bounds is not None
        low, high = self.action_bounds
        return np.array(low), np.array(high)

    @property
    def columns(self) -> int:
        """D, the number of values whose levels are recorded at a state: actions, or values of all components, if discrete, dimensions if continuous and bounded, else 0."""
        return self.actions or (len(self.action_bounds[0]) if self.action_bounds else 0)

    def radius_cap(self, threat: str) -> int:
        """No certificate against `threat` claims a larger radius: beyond the margins D' would be trained by another mechanism.

        Raises:
            MucdError: a margin is empty.
        """
        cap = self.units
        if self.size_margin is not None and threat != "substitute":
            if self.size_margin < 1:
                raise MucdError(
                    f"a dataset of {counted(self.units, self.mechanism.unit)} lies on the border between two rounded sizes, so that one more or less would change the mechanism: "
                    f"declare its size with --units N, a number chosen without looking at the data, such as how many were planned before recording (--units {round_size(self.units)}, say)"
                )
            cap = min(cap, self.size_margin)
        if self.choice_margin is not None and (threat != "substitute" or self.mechanism.unit == "transition"):
            # A transition that comes into the middle of a trajectory makes three of it, and one that is replaced may do so twice.
            margin = self.choice_margin // ({"substitute": 4}.get(threat, 2) if self.mechanism.unit == "transition" else 1)
            if margin < 1:
                raise MucdError("so many trajectories lie on the border at which the default unit is another: choose it yourself, --unit trajectory or --unit transition")
            cap = min(cap, margin)
        return cap

    def size_note(self, threat: str) -> str:
        if self.declared_size is None:
            return "No constant follows from the number of units; how many there are is accounted for."
        if self.size_margin is None:
            return f"The size {self.declared_size} was declared by the user as a public constant. The claim holds if it was not computed from this dataset."
        note = f"The mechanism follows from the size {self.declared_size}, which is the number of units rounded to a public series; "
        if threat == "substitute":
            return note + "replacing units does not change it."
        return note + f"every dataset within {counted(self.size_margin, 'insertion', 'removal')} rounds to the same, and no larger radius is claimed."

    def to_dict(self) -> dict:
        return json.loads(json.dumps(asdict(self) | {"card": self.card.to_dict(), "mechanism": to_values(self.mechanism), "trainer": self.trainer and outside.to_values(self.trainer)}))

    @classmethod
    def from_dict(cls, values: dict) -> "RunSettings":
        local = LocalUpdate(**check_types(LocalUpdate, values["learner"]["local"]))
        made = (
            values
            | {
                "card": card_from(values["card"]),
                "mechanism": from_values(values["mechanism"]),
                "fit": values["fit"] and Fit(**check_types(Fit, values["fit"])),
                "evaluator": values.get("evaluator") and evaluator.from_values(values["evaluator"]),
                "trainer": values.get("trainer") and outside.from_values(values["trainer"]),
                "learner": Learner(**check_types(Learner, values["learner"] | {"local": local})),
                "action_bounds": values["action_bounds"] and tuple(map(tuple, values["action_bounds"])),
                "components": values.get("components") and tuple(values["components"]),
                "trusted": values.get("trusted") and tuple(values["trusted"]),
                "imports": tuple(values.get("imports") or ()),
                "plugins": plugins.from_values(values.get("plugins") or ()),
                "states_from": values.get("states_from") and tuple(values["states_from"]),
            }
        )
        return cls(**check_types(cls, made) | {"assumptions": tuple(values["assumptions"])})

    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self._deciding(), sort_keys=True).encode()).hexdigest()

    def _deciding(self) -> dict:
        """All but the version: two that train the same instances may share a run. Nor what earlier versions knew nothing of, where it is as they did it."""
        values = {name: value for name, value in self.to_dict().items() if name != "version" and not (value is None and name in UNKNOWN_BEFORE) and (name, value) not in (("imports", []), ("plugins", []))}
        if self.fit is not None:
            values["fit"] = {name: value for name, value in values["fit"].items() if (name, value) not in FIT_AS_BEFORE}
        return values

    def differences(self, other: "RunSettings") -> list[str]:
        mine, theirs = _flat(self._deciding()), _flat(other._deciding())
        return [f"{k}: {mine.get(k)!r} there, {theirs.get(k)!r} now" for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]


@functools.cache
def code_digest() -> str:
    """Hash of the sources that decide what an instance is and what is recorded of it."""
    package, digest = Path(mucd_ray.__file__).parent, hashlib.sha256()
    rooms = [path for room in ("data", "mechanism", "learn", "evaluate") for path in sorted((package / room).rglob("*.py"))]
    for path in (*rooms, package / "service" / "runs" / "work.py", package / "certify" / "file" / "evidence.py"):
        digest.update(f"{path.relative_to(package)};".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def package_version() -> str:
    """Version of the package, with its commit if it was installed from a repository."""
    distribution = importlib.metadata.distribution("mucd_ray")
    commit = json.loads(distribution.read_text("direct_url.json") or "{}").get("vcs_info", {}).get("commit_id")
    return distribution.version + (f" (commit {commit})" if commit else "")


def check_code(settings: RunSettings) -> None:
    """Raise MucdError unless this code trains the instances that the run began with."""
    if settings.code != code_digest():
        version = f"version {settings.version}" if settings.version else "an earlier version, which did not write down its number"
        raise MucdError(
            f"the run began with other code, of {version} ({settings.code or 'unknown'}, now {code_digest()}), whose instances may not be mixed with those of this one: go on with "
            f"the one where `{DIGEST_COMMAND}` prints {settings.code or 'the same'}, or start a new run folder; `mucd certify` still certifies what is there"
        )


def check_imports(run, settings: RunSettings, imports: tuple[str, ...]) -> None:
    """Raise MucdError unless the modules that the user names are those of the run: what a folder names is no reason to import it, and with others its environment may be another.

    Args:
        run: how to call it.
    """
    if imports == settings.imports:
        return
    names = " ".join(f"--import {printable(name)}" for name in settings.imports)
    asked = f"its environment needs modules that are imported only on your word: add {names}" if settings.imports else "it began without --import: leave it out"
    raise MucdError(f"{getattr(run, 'location', run)} imports {', '.join(map(printable, settings.imports)) or 'nothing'}, and you name {', '.join(imports) or 'nothing'}: {asked}")


def check_history(history: int, mechanism: str, unit: str) -> None:
    """Raise MucdError unless what policies see follows from their bag or part alone: a stacked observation is made of several transitions of a trajectory."""
    if history != 1 and (unit == "transition" or mechanism not in WITH_HISTORY):
        raise MucdError(
            f"history {history} makes each observation of several transitions, and is for --mechanism {' or '.join(WITH_HISTORY)} with --unit trajectory or source, not for {mechanism} "
            f"with --unit {unit}: leave --history out"
        )


def constants_of(card: EnvironmentCard, mechanism: str, network: str) -> dict[str, int | float]:
    """What a card declares for learners on bags and parts, by name: for dense networks on what was recorded, not for others or on what an encoder makes of it."""
    if mechanism not in (Bag.kind, Partition.kind) or network != "dense" or card.encoder is not None:
        return {}
    return {name: getattr(card, name) for name in ("entries", "learning_rate") if getattr(card, name) is not None}


def _are_bounds(bounds: tuple, dimensions: int) -> bool:
    return len(bounds) == 2 and {len(part) for part in bounds} == {dimensions} and all(-math.inf < low < high < math.inf for low, high in zip(*bounds))


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
