"""What an environment card is: the public facts about an environment that training and certificates may use. Never computed from the data."""

import dataclasses
import functools
import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments import breakout, frames, freeway, halfcheetah, highway
from mucd_ray.data.environments.encoding import SHIPPED, encoded
from mucd_ray.data.environments.make import limited, make_environment, shortens, spec_of
from mucd_ray.data.environments.mirror import Mirror
from mucd_ray.data.environments.past import ACTION, Past, with_past
from mucd_ray.data.environments.plain import declared_spaces, plain
from mucd_ray.data.environments.recorded_in import check_arguments, check_environment_id, check_time_limit, name_of
from mucd_ray.data.spaces import CHOSEN_KEY, Observations, shown
from mucd_ray.errors import MucdError
from mucd_ray.files import check_types, read_file, read_json
from mucd_ray.plugins import NAME

# Public functions of one observation that a card may name: [..., *observation_shape] -> [..., *any shape].
TRANSFORMS = {
    "freeway-clear-steps": freeway.clear_steps,
    "breakout-ball-and-paddle": breakout.ball_and_paddle,
    "highway-gaps": highway.gaps,
    "halfcheetah-running-components": halfcheetah.running_components,
}

# Public wrappers of an environment that a card may name.
WRAPPERS = {
    "atari-frames": frames.AtariFrames,
    "breakout-serve": breakout.Serve,
    "breakout-serve-frames": lambda environment: frames.AtariFrames(breakout.Serve(environment)),
}

_ENTRIES_AT_A_TIME = 1 << 22
MOST_CARD_BYTES = 1 << 24
# Of one observation.
MOST_ENTRIES = 1 << 24
MOST_HISTORY = 1 << 10
MOST_ID = 1000


@dataclass(frozen=True, kw_only=True)
class EnvironmentCard:
    """How to make an environment, how to scale its observations, and in which range its returns lie.

    Attributes:
        env_id, make_kwargs: arguments of `gymnasium.make`.
        wrapper: name of a public wrapper in `WRAPPERS` that the environment is put into, or None.
        observation_shape: shape of what policies see: one observation, or [history, *shape of one], or [history, numbers of a step]. Observations in a Dict or Tuple space are joined first, and whole numbers of a Discrete or
            MultiDiscrete one are one-hot where this is the shape of those (`data/spaces.py`).
        observation_keys: keys of observations in a Dict or Tuple space that policies see; none means all of them.
        history: policies see so many of an episode's last observations, oldest first; at its beginning the first one stands for those that are missing.
        recalled: (numbers of an action, *shape of an observation) where policies see an episode's last steps as `past.Past` gives them; else none.
        transform: name of a public function in `TRANSFORMS` that replaces each observation first, or None.
        encoder: (SHA-256 of its file, number of its outputs) of an encoder from outside whose outputs replace each observation first
            (`learn/encoders.py`), or None.
        named_features: name of the features (`features.py`), of a plug-in or the package's own, that stand in the place of an encoder's outputs; then `encoder` has their SHA-256. None where there are none, or a file.
        indices: entries of the flattened (transformed) observation that are the policy's features, [d]; none means all of them.
        center, scale: one number per feature, or a single one for all: feature = (entry - center) / scale.
        clip: features are limited to [-clip, clip].
        return_range: (lo, hi), public bounds of an episode's undiscounted return; a certified return starts from lo.
        clip_returns: the environment itself has no such bounds, so every episode's return is clipped into `return_range` before anything
            else is done with it. Sound, being post-processing; the certificate is then about clipped returns.
        reward_range: (lo, hi), public bounds of one step's reward; only discounted returns need it.
        max_episode_steps: public greatest length of an episode, after which it is cut if the environment has not ended it; discounted returns and
            environments without a time limit of their own need it.
        reward_scale: public divisor that brings a typical reward near 1.
        privileged: whether `transform` comes out of the controller, or the model of the environment, that made the data: results on such features show the
            mechanism, not what others would get.
        mirror_observation, mirror_actions: a public symmetry of the environment, as in `Mirror`; none where they are empty. Learners on raw observations see the mirror image
            of every trajectory, too.
        entries, learning_rate: public constants for learners on bags and parts with dense networks on raw observations, used where the user gives none: how many entries of
            an observation a policy looks at (`learn/trainers/built_in.py: Fit`), and the optimiser's learning rate. None: the package's defaults.
        random_return, expert_return: reference returns for normalised scores, if known.
        source: where the constants come from.

    Raises:
        MucdError: a field is missing or outside its range.
    """

    env_id: str
    make_kwargs: dict = dataclasses.field(default_factory=dict)
    wrapper: str | None = None
    observation_shape: tuple[int, ...]
    history: int = 1
    recalled: tuple[int, ...] = ()
    transform: str | None = None
    encoder: tuple[str, int] | None = None
    named_features: str | None = None
    indices: tuple[int, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    clip: float
    return_range: tuple[float, float]
    clip_returns: bool = False
    reward_range: tuple[float, float] | None = None
    max_episode_steps: int | None = None
    reward_scale: float = 1.0
    privileged: bool = False
    mirror_observation: tuple[int, ...] = ()
    mirror_actions: tuple[int, ...] = ()
    observation_keys: tuple[str, ...] = ()
    entries: int | None = None
    learning_rate: float | None = None
    random_return: float | None = None
    expert_return: float | None = None
    source: str

    def __post_init__(self):
        if not isinstance(self.env_id, str) or not self.env_id.isprintable() or len(self.env_id) > MOST_ID:
            raise MucdError(f"env_id {self.env_id!r:.100} of a card must be a Gymnasium id of at most {MOST_ID} characters")
        if not isinstance(self.make_kwargs, dict) or not isinstance(self.source, str):
            raise MucdError(f"card of {self.env_id}: make_kwargs must be an object and source a sentence")
        _check_history(self.history)
        if not all(isinstance(key, str) and CHOSEN_KEY.fullmatch(key) for key in self.observation_keys) or len(set(self.observation_keys)) < len(self.observation_keys):
            raise MucdError(f"card of {self.env_id}: observation_keys {self.observation_keys!r:.200} must be different keys of letters, digits and the signs . _ - : /")
        for name in ("indices", "observation_shape", "recalled"):
            if not all(type(value) is int and 0 <= value < 1 << 31 for value in getattr(self, name)):
                raise MucdError(f"card of {self.env_id}: {name} {getattr(self, name)} must be whole numbers from 0 on")
        if math.prod(self.observation_shape) > MOST_ENTRIES:
            raise MucdError(f"card of {self.env_id}: observation_shape {self.observation_shape} has more than {MOST_ENTRIES:,} entries")
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise MucdError(f"card of {self.env_id}: transform {self.transform!r} is unknown: use one of {', '.join(TRANSFORMS)} or none")
        if self.encoder is not None:
            self._check_encoder(self.encoder)
        elif self.named_features is not None:
            raise MucdError(f"card of {self.env_id}: features are named on the command line, --features NAME, and not in a card")
        if (self.history > 1 or self.recalled) and (self.transform is not None or self.encoder is not None or self.indices or self.observation_shape[:1] != (self.history,)):
            raise MucdError(f"history {self.history} is of raw observations: leave the transform, the encoder and the indices of the card of {self.env_id} out")
        if self.recalled and tuple(self.observation_shape[1:]) != (ACTION + self.recalled[0] + math.prod(self.recalled[1:]),):
            raise MucdError(f"card of {self.env_id}: steps of shape {self.observation_shape[1:]} do not hold what is recalled, {self.recalled}: leave it out, it follows from the learner")
        if bool(self.mirror_observation) != bool(self.mirror_actions) or self.mirror and len(self.mirror.observation) != math.prod(self.observation_shape):
            raise MucdError(f"card of {self.env_id}: mirror_observation must have one number for each of the {math.prod(self.observation_shape)} entries of an observation, beside mirror_actions")
        if self.wrapper is not None and self.wrapper not in WRAPPERS:
            raise MucdError(f"card of {self.env_id}: wrapper {self.wrapper!r} is unknown: use one of {', '.join(WRAPPERS)} or none")
        if self.wrapper is not None and not name_of(self.env_id).startswith("ALE/"):
            raise MucdError(f"card of {self.env_id}: wrapper {self.wrapper!r} is for Atari games: leave it out")
        size = self._size
        if not all(len(values) in (1, len(self.indices) or size) for values in (self.center, self.scale)):
            lengths = f"{len(self.indices)}, {len(self.center)} and {len(self.scale)}"
            raise MucdError(f"card of {self.env_id}: indices, center and scale have {lengths} entries: give one center and one scale per feature, or one for all")
        if not all(0 <= index < size for index in self.indices):
            raise MucdError(f"card of {self.env_id}: indices {self.indices} leave the {size} entries of a flattened observation")
        if not all(math.isfinite(c) for c in self.center) or not all(s > 0 and math.isfinite(s) for s in (*self.scale, self.clip)):
            raise MucdError(f"card of {self.env_id}: center must be finite, scale and clip finite and above 0")
        if not (len(self.return_range) == 2 and -math.inf < self.return_range[0] < self.return_range[1] < math.inf):
            raise MucdError(f"card of {self.env_id}: return range {self.return_range} must be two finite numbers, the lower first")
        for name in ("clip_returns", "privileged"):
            if type(getattr(self, name)) is not bool:
                raise MucdError(f"card of {self.env_id}: {name} {getattr(self, name)!r} must be true or false")
        if not (self.reward_scale > 0 and math.isfinite(self.reward_scale)):
            raise MucdError(f"card of {self.env_id}: reward_scale {self.reward_scale} must be finite and above 0")
        if self.reward_range is not None and not (len(self.reward_range) == 2 and -math.inf < self.reward_range[0] <= self.reward_range[1] < math.inf):
            raise MucdError(f"card of {self.env_id}: reward range {self.reward_range} must be two finite numbers, the lower first")
        references = (self.random_return, self.expert_return)
        if not all(value is None or math.isfinite(value) for value in references) or None not in references and references[0] == references[1]:
            raise MucdError(f"card of {self.env_id}: random_return and expert_return {references} must be two different finite numbers, or left out")
        if self.max_episode_steps is not None and not (type(self.max_episode_steps) is int and self.max_episode_steps >= 1):
            raise MucdError(f"card of {self.env_id}: max_episode_steps {self.max_episode_steps!r} must be a whole number, at least 1")
        most = math.prod(self.observation_shape)
        if self.entries is not None and not (type(self.entries) is int and 1 <= self.entries <= most):
            raise MucdError(f"card of {self.env_id}: entries {self.entries!r:.100} must be a whole number from 1 to {most}, the entries of an observation, or left out")
        if self.learning_rate is not None and not (type(self.learning_rate) in (int, float) and 0 < self.learning_rate < math.inf):
            raise MucdError(f"card of {self.env_id}: learning_rate {self.learning_rate!r:.100} must be a finite number above 0, or left out")

    def _check_encoder(self, encoder: tuple) -> None:
        sha256, outputs = encoder if len(encoder) == 2 else (None, None)
        if not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) and type(outputs) is int and 1 <= outputs <= MOST_ENTRIES):
            raise MucdError(f"card of {self.env_id}: encoder {encoder!r:.100} must be the SHA-256 of a file and the number of its outputs")
        if self.named_features is not None and not NAME.fullmatch(self.named_features):
            raise MucdError(f"card of {self.env_id}: named_features {self.named_features!r:.100} is no name of features")
        if self.transform is not None:
            raise MucdError(f"card of {self.env_id}: an encoder takes the place of the transform {self.transform!r}: leave one of them out")

    @functools.cached_property
    def mirror(self) -> Mirror | None:
        """The declared symmetry of raw observations and actions."""
        return Mirror(observation=self.mirror_observation, actions=self.mirror_actions) if self.mirror_actions else None

    @functools.cached_property
    def _size(self) -> int:
        """Entries of a flattened (transformed, encoded) observation."""
        return self.encoder[1] if self.encoder else self._entries(np.zeros(self.observation_shape)).size

    @functools.cached_property
    def width(self) -> int:
        """d, the number of features."""
        return len(self.indices) or self._size

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
        rows = observations.reshape(-1, *shape)
        features = np.empty((len(rows), self.width), np.float32)
        step = max(1, _ENTRIES_AT_A_TIME // max(math.prod(shape), self.width))
        for start in range(0, len(rows), step):  # temporaries are much larger than bytes
            features[start : start + step] = self._row_features(rows[start : start + step])
        return features.reshape(*observations.shape[:lead], self.width)

    def _row_features(self, rows: np.ndarray) -> np.ndarray:
        entries = self._entries(rows)
        entries = (entries[:, list(self.indices)] if self.indices else entries).astype(np.float64)
        with np.errstate(over="ignore"):
            scaled = (entries - np.array(self.center)) / np.array(self.scale)
        return np.where(np.isfinite(entries), np.clip(scaled, -self.clip, self.clip), entries).astype(np.float32)

    def _entries(self, observations: np.ndarray) -> np.ndarray:
        """Flattened, transformed or encoded observations, [..., entries]."""
        lead = observations.shape[: observations.ndim - len(self.observation_shape)]
        if self.encoder is not None:
            entries = encoded(*self.encoder, observations.reshape(-1, *self.observation_shape))
        else:
            entries = observations if self.transform is None else TRANSFORMS[self.transform](observations)
        entries = entries.reshape(*lead, math.prod(entries.shape[len(lead) :]) if self.encoder is None else self.encoder[1])
        if self.transform is not None or self.encoder is not None:  # a transform may hide a NaN, for example behind a comparison
            finite = np.isfinite(observations).all(axis=tuple(range(len(lead), observations.ndim)))
            entries = np.where(finite[..., None], entries, np.nan)
        return entries

    def without_learning(self) -> "EnvironmentCard":
        """The same environment without what learners alone are told, which may differ from one version of a shipped card to the next."""
        return dataclasses.replace(self, mirror_observation=(), mirror_actions=(), entries=None, learning_rate=None, source="")

    def raw(self) -> "EnvironmentCard":
        """The same environment with observations (or what the encoder makes of them) as they are: flattened, neither chosen from, nor transformed, centred or scaled."""
        everything = float(np.finfo(np.float32).max)
        return dataclasses.replace(self, transform=None, indices=(), center=(0.0,), scale=(1.0,), clip=everything, privileged=False)

    def with_history(self, history: int) -> "EnvironmentCard":
        """A raw card whose policies see the last `history` observations.

        Raises:
            MucdError: no whole number from 1 on, or too large a one; a card that is not raw.
        """
        one = self.without_history()
        _check_history(history)
        if history == 1:
            return one
        size = math.prod(one.observation_shape)
        mirror = tuple(number + (size * step if number > 0 else -size * step) for step in range(history) for number in one.mirror_observation)
        return dataclasses.replace(one, history=history, observation_shape=(history, *one.observation_shape), mirror_observation=mirror)

    def with_past(self, history: int, actions: int) -> "EnvironmentCard":
        """A raw card whose policies see the last `history` steps of an episode, each with the action before it, `actions` numbers, and the rewards before it.

        Raises:
            MucdError: as of `with_history`, or an encoder, which sees single observations.
        """
        one = self.without_history()
        _check_history(history)
        if one.encoder is not None:
            raise MucdError("an encoder is given one observation at a time, and dt sees the last steps of an episode: leave --encoder out, or use another learner")
        width = ACTION + actions + math.prod(one.observation_shape)
        mirror = ()
        if one.mirror is not None:
            # The image of the action before a step stands in its place, too; one of several is undone by itself.
            of_actions = [(1, number + 1) if one.mirror.of_discrete else (1 if number > 0 else -1, abs(number)) for number in one.mirror_actions]
            numbers = [*range(1, ACTION + 1), *(sign * (ACTION + place) for sign, place in of_actions)]
            numbers += [number + (ACTION + actions if number > 0 else -ACTION - actions) for number in one.mirror_observation]
            mirror = tuple(number + (width * step if number > 0 else -width * step) for step in range(history) for number in numbers)
        return dataclasses.replace(one, history=history, recalled=(actions, *one.observation_shape), observation_shape=(history, width), mirror_observation=mirror)

    def without_history(self) -> "EnvironmentCard":
        """The card of one observation."""
        if self.history == 1 and not self.recalled:
            return self
        shape = self.recalled[1:] if self.recalled else self.observation_shape[1:]
        mirror = self.mirror_observation[: math.prod(shape)]
        if self.recalled and self.mirror_observation:
            before = ACTION + self.recalled[0]
            mirror = tuple(number - before if number > 0 else number + before for number in self.mirror_observation[before : before + math.prod(shape)])
        return dataclasses.replace(self, history=1, recalled=(), observation_shape=shape, mirror_observation=mirror)

    def as_seen(self, dataset: OfflineDataset) -> OfflineDataset:
        """The transitions of a dataset with (next) observations as policies see them, whole numbers one-hot where the card's shape says so: a map of each trajectory by itself."""
        if dataset.observations.shape[1:] != self._shape_of_one and _is_whole(dataset.observation_space):
            dataset = dataset.one_hot()
        return with_past(dataset, self.history) if self.recalled else dataset.with_history(self.history)

    def features_source(self) -> dict:
        """What policies see, as a certificate says it (certify/file/evidence.py)."""
        source = "privileged" if self.privileged else "raw" if self == self.raw() else "card"
        stacked: dict[str, Any] = {"steps": self.history} if self.recalled else {"history": self.history} if self.history > 1 else {}
        if self.observation_keys:
            stacked["keys"] = list(self.observation_keys)
        encoder = self.encoder and self.encoder[0]
        if self.named_features:
            return {"source": "shipped" if self.named_features in SHIPPED else "plug-in", "card": self.env_id, "encoder": encoder, "name": self.named_features} | stacked
        return {"source": "encoder" if self.encoder else source, "card": self.env_id, "encoder": encoder} | stacked

    def discounted_range(self, discount: float) -> tuple[float, float]:
        """Public bounds of sum_t discount^t r_t: over all lengths n in 1..max_episode_steps and all rewards in the reward range.

        Rewards of one sign only grow in size when the discount is taken away, so `return_range` bounds them too. The range is widened
        by 1e-9 of its size, far above the rounding of any sum. Without a discount it is `return_range` itself, and where returns are clipped, too:
        then the discounted sum is what is clipped into it.

        Args:
            discount: in (0, 1].
        Raises:
            MucdError: a discount outside (0, 1], or a discount below 1 and no `reward_range` or `max_episode_steps`.
        """
        check_discount(discount)
        if discount == 1 or self.clip_returns:
            return self.return_range
        if self.reward_range is None or self.max_episode_steps is None:
            missing = "reward_range" if self.reward_range is None else "max_episode_steps"
            raise MucdError(f"discount {discount} needs the field {missing} in the card of {self.env_id}, or the range of discounted returns is not public: add it")
        (low, high), longest = self.reward_range, -math.expm1(self.max_episode_steps * math.log(discount)) / (1 - discount)
        least, greatest = min(low, low * longest), max(high, high * longest)
        if low >= 0:
            greatest = min(greatest, self.return_range[1])
        if high <= 0:
            least = max(least, self.return_range[0])
        slack = 1e-9 * max(abs(least), abs(greatest), 1e-9)
        return least - slack, greatest + slack

    def clipped(self, returns: np.ndarray) -> np.ndarray:
        """Episodes' (discounted) returns [...], clipped into `return_range` if the card says so (NaN counts as lo), else as they are."""
        if not self.clip_returns:
            return returns
        low, high = self.return_range
        return np.clip(np.where(np.isnan(returns), low, returns), low, high)

    def make(self) -> gym.Env:
        """A fresh environment, whose episodes take at most `max_episode_steps` if that is given.

        Raises:
            MucdError: it cannot be made, or nothing limits its episodes: a policy may keep one going for ever.
        """
        environment = limited(make_environment(self.env_id, **self.make_kwargs), self.env_id, self.max_episode_steps)
        environment = environment if self.wrapper is None else WRAPPERS[self.wrapper](environment)
        try:
            environment = plain(environment, self.observation_keys, self._shape_of_one)
        except MucdError as error:
            environment.close()
            raise MucdError(f"{self.env_id}: {error}") from None
        if self.recalled:
            return Past(environment, self.history)
        return environment if self.history == 1 else gym.wrappers.FrameStackObservation(environment, self.history, padding_type="reset")

    @property
    def _shape_of_one(self) -> tuple[int, ...]:
        return tuple(self.recalled[1:] if self.recalled else self.observation_shape if self.history == 1 else self.observation_shape[1:])

    def of_keys(self, keys: tuple[str, ...]) -> "EnvironmentCard":
        """The card of one observation whose policies see these keys of it, in the shape that they have in the environment.

        Raises:
            MucdError: the environment's observations have no such keys, or the card's features are of others.
        """
        environment = make_environment(self.env_id, **self.make_kwargs)
        environment.close()
        try:
            shape = Observations.of(environment.observation_space, keys).space.shape
        except MucdError as error:
            raise MucdError(f"{self.env_id}: {error}") from None
        return dataclasses.replace(self, observation_keys=tuple(sorted(set(keys))), observation_shape=tuple(map(int, shape)))

    def one_hot(self) -> "EnvironmentCard":
        """This card of one observation, where the environment's observations are whole numbers in a Discrete or MultiDiscrete space of those one-hot. Not where it has a mirror of them as they are."""
        if len(self.observation_shape) > 1 or self.mirror:
            return self
        environment = self.make()
        environment.close()
        space = environment.observation_space
        return dataclasses.replace(self, observation_shape=tuple(Observations.of(space).space.shape)) if _is_whole(space) else self

    def _shortens(self, registered: int | None) -> bool:
        """Whether this card's limit is below the one with which Gymnasium makes the environment."""
        return shortens(self.max_episode_steps, registered)

    @property
    def is_as_registered(self) -> bool:
        """Whether the environment is what Gymnasium makes of its id alone."""
        return not self.make_kwargs and self.wrapper is None and self.history == 1 and not self.recalled and not self._shortens(gym.spec(self.env_id).max_episode_steps)

    def check(self, dataset: OfflineDataset) -> None:
        """Raise MucdError unless the dataset was recorded in this environment: same id, arguments, wrappers and time limit (if known), observation shape, action space."""
        if self.history > 1 or self.recalled:
            return self.without_history().check(dataset)
        check_environment_id(dataset, self.env_id)
        environment = self.make()
        action_space, spec = environment.action_space, spec_of(environment)
        observations, actions = declared_spaces(environment)
        try:
            check_arguments(dataset, environment)
        finally:
            environment.close()
        assert spec.max_episode_steps is not None  # `make` refuses what has none
        check_time_limit(dataset, self.env_id, spec.max_episode_steps, by_card=self._shortens(gym.registry[spec.id].max_episode_steps))
        self._check_observations(dataset, observations)
        if not dataset.fits_actions(action_space) or dataset.declared_actions is not None and dataset.declared_actions != actions:
            raise MucdError(
                f"dataset {dataset.name} declares actions in {shown(dataset.declared_actions or dataset.action_space)}, {self.env_id} has {shown(actions)}: use the environment that was recorded"
            )

    def _check_observations(self, dataset: OfflineDataset, space: gym.Space) -> None:
        """Raise MucdError unless recorded observations are read as those of the environment's space are."""
        recorded = read_as(dataset.observation_space, dataset.observation_parts)
        if recorded:
            parts = Observations.of(space, self.observation_keys).words
            if recorded != parts:
                here, there = next((one, other) for one, other in itertools.zip_longest(recorded, parts) if one != other)
                raise MucdError(
                    f"dataset {dataset.name} declares observations with {here or 'less'!s:.200}, {self.env_id} has {there or 'nothing'!s:.200} there: use the environment that was recorded, or keys that "
                    "both have (--observation-keys)"
                )
        shape = self._shape_in(dataset)
        if shape != tuple(self.observation_shape):
            raise MucdError(
                f"dataset {dataset.name} has observations of shape {shape}, the card of {self.env_id} expects "
                f"{tuple(self.observation_shape)}: use the card that fits the recording"
            )

    def _shape_in(self, dataset: OfflineDataset) -> tuple[int, ...]:
        """That of one observation of a dataset: whole numbers as this card sees them."""
        shape = dataset.observations.shape[1:]
        return tuple(Observations.of(dataset.observation_space).space.shape) if shape != self._shape_of_one and _is_whole(dataset.observation_space) else shape

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` inverts it. Fields that cards of earlier versions' runs do not have are left out where they say nothing."""
        unknown_before = {"history": 1, "recalled": (), "mirror_observation": (), "mirror_actions": (), "observation_keys": (), "entries": None, "learning_rate": None, "named_features": None}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in unknown_before or value != unknown_before[name]}
        return json.loads(json.dumps(values, sort_keys=True))

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
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in check_types(cls, values).items()}
            return cls(**values)
        except (TypeError, ValueError, IndexError) as error:
            raise MucdError(f"a field of the card of {str(values.get('env_id'))[:60]} has a wrong type or shape ({error}): give numbers and lists of numbers") from error


def read_as(space: gym.Space, parts: tuple[str, ...]) -> tuple[str, ...]:
    """What decides how observations in a space are read: the `parts` that they are joined from, or those of whole numbers; nothing of others."""
    return parts or (Observations.of(space).words if _is_whole(space) else ())


def _is_whole(space: gym.Space) -> bool:
    """Whether its elements are whole numbers that may be made one-hot."""
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)


def _check_history(history: int) -> None:
    if not (type(history) is int and 1 <= history <= MOST_HISTORY):
        raise MucdError(f"history {history!r:.100} must be a whole number from 1 to {MOST_HISTORY}: how many of the last observations policies see")


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
        values = read_json(read_file(path, MOST_CARD_BYTES), f"card {path}", infinities=True)
    except (OSError, MucdError) as error:
        raise MucdError(f"card {path} cannot be read ({error}): give a JSON file with the fields of an environment card") from error
    if isinstance(values, dict):
        # As `mucd card` writes them: null stands for what the environment does not declare.
        named = values.pop("missing", [])
        asked = {"center", "scale", "return_range", *(named if isinstance(named, list) and all(isinstance(name, str) for name in named) else [])}
        lacking = [name for name, value in values.items() if name in asked and (value is None or isinstance(value, list) and None in value)]
        if lacking:
            raise MucdError(f"card {path} is not complete: {', '.join(lacking)} must be filled in by you, and not from the data to be certified (`mucd card` says what they are)")
    return check_of_one(EnvironmentCard.from_dict(values), str(path))


def check_of_one(card: EnvironmentCard, name: str) -> EnvironmentCard:
    """A card as users give them; MucdError where what they see is what only a run adds."""
    if card.history > 1 or card.recalled:
        raise MucdError(f"card {name} has the history {card.history}: a card is about one observation; leave it out, and give --history {card.history}")
    return card
