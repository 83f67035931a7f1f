"""Environment cards: the public facts about an environment that training and certificates may use. Never computed from the data."""

import dataclasses
import json
import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mucd_ray.data import freeway
from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments import make_environment
from mucd_ray.errors import MucdError

# Public functions of one observation that a card may name: [..., *observation_shape] -> [..., *any shape].
TRANSFORMS = {"freeway-clear-steps": freeway.clear_steps}


@dataclass(frozen=True, kw_only=True)
class EnvironmentCard:
    """How to make an environment, how to scale its observations, and in which range its returns lie.

    Attributes:
        env_id, make_kwargs: arguments of `gymnasium.make`.
        observation_shape: shape of one observation.
        transform: name of a public function in `TRANSFORMS` that replaces each observation first, or None.
        indices: entries of the flattened (transformed) observation that are the policy's features, [d].
        center, scale: one number per index: feature = (entry - center) / scale.
        clip: features are limited to [-clip, clip].
        return_range: (lo, hi), public bounds of an episode's undiscounted return; a certified return starts from lo.
        reward_range: (lo, hi), public bounds of one step's reward; only discounted returns need it.
        max_episode_steps: public greatest length of an episode; only discounted returns need it.
        random_return, expert_return: reference returns for normalised scores, if known.
        source: where the constants come from.

    Raises:
        MucdError: a field is missing or outside its range.
    """

    env_id: str
    make_kwargs: dict = dataclasses.field(default_factory=dict)
    observation_shape: tuple[int, ...]
    transform: str | None = None
    indices: tuple[int, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float
    return_range: tuple[float, float]
    reward_range: tuple[float, float] | None = None
    max_episode_steps: int | None = None
    random_return: float | None = None
    expert_return: float | None = None
    source: str

    def __post_init__(self):
        if not isinstance(self.make_kwargs, dict) or not isinstance(self.source, str):
            raise MucdError(f"card of {self.env_id}: make_kwargs must be an object and source a sentence")
        for name in ("indices", "observation_shape"):
            if not all(type(value) is int and 0 <= value < 1 << 31 for value in getattr(self, name)):
                raise MucdError(f"card of {self.env_id}: {name} {getattr(self, name)} must be whole numbers from 0 on")
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise MucdError(f"card of {self.env_id}: transform {self.transform!r} is unknown: use one of {', '.join(TRANSFORMS)} or none")
        size = self._entries(np.zeros(self.observation_shape)).size
        if not self.indices or not len(self.indices) == len(self.center) == len(self.scale):
            lengths = f"{len(self.indices)}, {len(self.center)} and {len(self.scale)}"
            raise MucdError(f"card of {self.env_id}: indices, center and scale have {lengths} entries: give one of each per feature")
        if not all(0 <= index < size for index in self.indices):
            raise MucdError(f"card of {self.env_id}: indices {self.indices} leave the {size} entries of a flattened observation")
        if not all(math.isfinite(c) for c in self.center) or not all(s > 0 and math.isfinite(s) for s in (*self.scale, self.clip)):
            raise MucdError(f"card of {self.env_id}: center must be finite, scale and clip finite and above 0")
        if not (len(self.return_range) == 2 and -math.inf < self.return_range[0] < self.return_range[1] < math.inf):
            raise MucdError(f"card of {self.env_id}: return range {self.return_range} must be two finite numbers, the lower first")
        if self.reward_range is not None and not (len(self.reward_range) == 2 and -math.inf < self.reward_range[0] <= self.reward_range[1] < math.inf):
            raise MucdError(f"card of {self.env_id}: reward range {self.reward_range} must be two finite numbers, the lower first")
        if self.max_episode_steps is not None and not (type(self.max_episode_steps) is int and self.max_episode_steps >= 1):
            raise MucdError(f"card of {self.env_id}: max_episode_steps {self.max_episode_steps!r} must be a whole number, at least 1")

    def features(self, observations: np.ndarray) -> np.ndarray:
        """Features of each observation on its own: clip((entry - center) / scale, -clip, clip).

        A non-finite entry stays non-finite, so that the learner can count that unit as zero.

        Args:
            observations: [..., *observation_shape], any real dtype.
        Returns:
            float32 [..., d].
        Raises:
            MucdError: another observation shape.
        """
        observations, shape = np.asarray(observations), tuple(self.observation_shape)
        lead = observations.ndim - len(shape)
        if lead < 0 or observations.shape[lead:] != shape:
            raise MucdError(f"observations of shape {observations.shape} do not end in {shape}, the shape of {self.env_id}: use this environment's card")
        entries = self._entries(observations)[..., list(self.indices)].astype(np.float64)
        with np.errstate(over="ignore"):
            scaled = (entries - np.array(self.center)) / np.array(self.scale)
        return np.where(np.isfinite(entries), np.clip(scaled, -self.clip, self.clip), entries).astype(np.float32)

    def _entries(self, observations: np.ndarray) -> np.ndarray:
        """Flattened, transformed observations, [..., entries]."""
        lead = observations.shape[: observations.ndim - len(self.observation_shape)]
        entries = observations if self.transform is None else TRANSFORMS[self.transform](observations)
        entries = entries.reshape(*lead, math.prod(entries.shape[len(lead) :]))
        if self.transform is not None:  # a transform may hide a NaN, for example behind a comparison
            finite = np.isfinite(observations).all(axis=tuple(range(len(lead), observations.ndim)))
            entries = np.where(finite[..., None], entries, np.nan)
        return entries

    def discounted_range(self, discount: float) -> tuple[float, float]:
        """Public bounds of sum_t discount^t r_t: over all lengths n in 1..max_episode_steps and all rewards in the reward range.

        Rewards of one sign only grow in size when the discount is taken away, so `return_range` bounds them too. The range is widened
        by 1e-9 of its size, far above the rounding of any sum. Without a discount it is `return_range` itself.

        Args:
            discount: in (0, 1].
        Raises:
            MucdError: a discount outside (0, 1], or a discount below 1 and no `reward_range` or `max_episode_steps`.
        """
        check_discount(discount)
        if discount == 1:
            return self.return_range
        for name in ("reward_range", "max_episode_steps"):
            if getattr(self, name) is None:
                raise MucdError(f"discount {discount:g} needs the field {name} in the card of {self.env_id}, or the range of discounted returns is not public: add it")
        (low, high), longest = self.reward_range, -math.expm1(self.max_episode_steps * math.log(discount)) / (1 - discount)
        least, greatest = min(low, low * longest), max(high, high * longest)
        if low >= 0:
            greatest = min(greatest, self.return_range[1])
        if high <= 0:
            least = max(least, self.return_range[0])
        slack = 1e-9 * max(abs(least), abs(greatest), 1e-9)
        return least - slack, greatest + slack

    def make(self) -> gym.Env:
        """A fresh environment."""
        return make_environment(self.env_id, **self.make_kwargs)

    def check(self, dataset: OfflineDataset) -> None:
        """Raise MucdError unless the dataset was recorded in this environment: same id (if known), observation shape, action space."""
        if dataset.env_id not in (None, self.env_id):
            raise MucdError(f"dataset {dataset.name} was recorded in {dataset.env_id}, not in {self.env_id}: use the card of {dataset.env_id}")
        if dataset.observations.shape[1:] != tuple(self.observation_shape):
            raise MucdError(
                f"dataset {dataset.name} has observations of shape {dataset.observations.shape[1:]}, the card of {self.env_id} expects "
                f"{tuple(self.observation_shape)}: use the card that fits the recording"
            )
        environment = self.make()
        action_space = environment.action_space
        environment.close()
        if dataset.action_space != action_space:
            raise MucdError(
                f"dataset {dataset.name} declares actions in {dataset.action_space}, {self.env_id} has {action_space}: use the environment that was recorded"
            )

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` inverts it."""
        return json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))

    @classmethod
    def from_dict(cls, values: dict) -> "EnvironmentCard":
        """A card from `to_dict`'s values (see `load_card` for files).

        Raises:
            MucdError: missing, unknown or ill-typed fields.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {name for name, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
        if not isinstance(values, dict) or not required <= set(values) <= set(fields):
            given = ", ".join(sorted(values)) if isinstance(values, dict) else type(values).__name__
            raise MucdError(f"a card needs the fields {', '.join(sorted(required))} (optional: {', '.join(sorted(set(fields) - required))}), got {given}")
        try:
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            return cls(**values)
        except (TypeError, ValueError, IndexError) as error:
            raise MucdError(f"a field of the card of {values.get('env_id')} has a wrong type or shape ({error}): give numbers and lists of numbers") from error


def check_discount(discount: float) -> float:
    if not 0 < discount <= 1:
        raise MucdError(f"discount {discount} is outside (0, 1]: 1 means the plain sum of rewards, 0.99 counts a reward after 100 steps about a third")
    return discount


def load_card(path) -> EnvironmentCard:
    """A card from a JSON file.

    Raises:
        MucdError: the file cannot be read, is not JSON, or is not a card.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError) as error:
        raise MucdError(f"card {path} cannot be read ({error}): give a JSON file with the fields of an environment card") from error
    return EnvironmentCard.from_dict(values)


def card_for(env_id: str) -> EnvironmentCard:
    """The shipped card of an environment.

    Raises:
        MucdError: none is shipped.
    """
    if env_id not in CARDS:
        raise MucdError(
            f"no environment card is shipped for {env_id!r} (shipped: {', '.join(CARDS)}): write one as JSON "
            "(fields as in mucd_ray.data.cards.EnvironmentCard) and pass it with --card FILE"
        )
    return CARDS[env_id]


_SCALES = (
    "Centers and scales: rounded means and standard deviations over simulator recordings of the shipped behaviour with seed 900000, "
    "which no certified dataset uses."
)

CARDS = {
    card.env_id: card
    for card in (
        EnvironmentCard(
            env_id="CartPole-v1",
            observation_shape=(4,),
            indices=(0, 1, 2, 3),
            center=(0.0, 0.0, 0.0, 0.0),
            scale=(0.16, 0.24, 0.03, 0.3),
            clip=3.0,
            return_range=(0.0, 500.0),
            reward_range=(1.0, 1.0),
            max_episode_steps=500,
            random_return=22.0,
            expert_return=500.0,
            source=f"{_SCALES} Returns: one point a step, 500 steps at most.",
        ),
        EnvironmentCard(
            env_id="Acrobot-v1",
            observation_shape=(6,),
            # Mirroring the two links turns the sines and velocities, and the torque, into their negatives: the entries that a
            # torque can depend on linearly. The cosines stay as they are and would only take in noise.
            indices=(1, 3, 4, 5),
            center=(0.0, 0.0, 0.0, 0.0),
            scale=(0.55, 0.65, 1.8, 3.0),
            clip=3.0,
            return_range=(-500.0, 0.0),
            reward_range=(-1.0, 0.0),
            max_episode_steps=500,
            random_return=-500.0,
            expert_return=-80.0,
            source=f"Features: the entries that change sign when the system is mirrored. {_SCALES} Returns: minus one point a step, 500 steps at most.",
        ),
        EnvironmentCard(
            env_id="ALE/Freeway-v5",
            make_kwargs={"obs_type": "ram"},
            observation_shape=(128,),
            transform="freeway-clear-steps",
            indices=(0, 1, 2),
            center=(5.3, 5.3, 5.3),
            scale=(1.6, 1.6, 1.6),
            clip=3.0,
            return_range=(0.0, 50.0),
            reward_range=(0.0, 1.0),
            max_episode_steps=2048,
            random_return=0.0,
            expert_return=30.0,
            source="Features: steps before a car hits the chicken after NOOP, UP or DOWN, by a public model of the traffic (mucd_ray/data/freeway.py). "
            f"{_SCALES} Returns: a crossing takes at least 42 of an episode's 2048 steps, hence at most 48 points.",
        ),
        EnvironmentCard(
            env_id="Pendulum-v1",
            observation_shape=(3,),
            indices=(0, 1, 2),
            center=(0.0, 0.0, 0.0),
            scale=(0.7, 0.7, 4.0),
            clip=3.0,
            return_range=(-3254.7209, 0.0),
            # -(pi^2 + 0.1 * 8^2 + 0.001 * 2^2), rounded down.
            reward_range=(-16.2736045, 0.0),
            max_episode_steps=200,
            source="Features: cosine, sine and speed, over half their documented range or so. Returns: 200 steps, each costs at most "
            "pi^2 + 0.1 * 8^2 + 0.001 * 2^2 (Gymnasium's documentation).",
        ),
    )
}
