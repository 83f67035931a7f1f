"""The card of a dataset whose environment is unknown, not installed or does not exist: what the dataset declares of observations and actions, and constants of the user's."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from minari.serialization import serialize_space

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.card import EnvironmentCard, read_as
from mucd_ray.data.formats.metadata import read_space
from mucd_ray.data.spaces import Actions, Observations, shape_of, shown
from mucd_ray.errors import MucdError
from mucd_ray.words import NO_ENVIRONMENT

SOURCE = "Observations are taken as they were recorded: nothing is known of an environment."
# What is taken of a card that the user gives: all that is about observations, and nothing about episodes.
KEPT = ("observation_shape", "transform", "indices", "center", "scale", "clip", "reward_scale", "privileged", "mirror_observation", "mirror_actions", "entries", "learning_rate", "source")


class DeclaredSpaces(gym.Env):
    """Stands where an environment is asked for its spaces alone: no episode can be played."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, **_):
        raise MucdError("there is no environment (--no-environment), so no episode can be played")

    def step(self, action):
        raise MucdError("there is no environment (--no-environment), so no episode can be played")


@dataclass(frozen=True, kw_only=True)
class DeclaredCard(EnvironmentCard):
    """A card without an environment. Nothing of it is about returns: whoever asks for their range is refused.

    All of it is a public assumption of the claim.

    Attributes:
        observation_space, action_space: of the arrays of the dataset, in Minari's JSON.
        observation_parts: `Observations.words` of what the dataset declares, where these arrays are joined from parts or are one-hot; else nothing.
        declared_actions: the action space that it declares, in Minari's JSON, where these arrays are numbers of its combinations or its flattened rows; else None.

    Raises:
        MucdError: as a card; a space that is none, observations of another shape than the space's or without any number, or parts or actions that are not of these spaces.
    """

    env_id: str = NO_ENVIRONMENT
    # For the checks of a card; it is neither read nor stored.
    return_range: tuple[float, float] = (0.0, 1.0)
    observation_space: str
    action_space: str
    observation_parts: tuple[str, ...] = ()
    declared_actions: str | None = None

    def __post_init__(self):
        super().__post_init__()
        observations, actions = self.spaces
        if observations.shape != tuple(self.without_history().observation_shape):
            raise MucdError(f"observations are declared to be of shape {observations.shape}, and the card is of shape {tuple(self.observation_shape)}: use a card for these observations")
        if not math.prod(observations.shape):
            raise MucdError(f"observations are declared to be of shape {observations.shape}, which holds no number: there is nothing to learn from")
        if not all(isinstance(words, str) for words in self.observation_parts) or self.declared_actions is not None and Actions(declared=self._declared_actions).space != actions:
            raise MucdError(f"observation_parts {self.observation_parts!r:.100} must be texts, and declared_actions {self.declared_actions!r:.100} a space of these actions")

    @classmethod
    def of(cls, dataset: OfflineDataset, card: EnvironmentCard | None = None) -> "DeclaredCard":
        """The declared spaces of a dataset; `card` is the user's, whose features, scales and source are taken.

        Raises:
            MucdError: nobody declared its actions: which there are would follow from its rows, and so from whoever wrote one of them.
        """
        if not dataset.actions_declared:
            raise MucdError(f"actions of {dataset.name} are read off its rows, which one poisoned row could change: declare them, `mucd import --actions N` (or LO,HI), and import it again")
        spaces = {"observation_space": serialize_space(dataset.observation_space), "action_space": serialize_space(dataset.action_space)}
        spaces |= {"observation_parts": dataset.observation_parts, "declared_actions": None if dataset.declared_actions is None else serialize_space(dataset.declared_actions)}
        if card is not None:
            return cls(**{name: getattr(card, name) for name in KEPT}, **spaces)
        everything = float(np.finfo(np.float32).max)
        return cls(observation_shape=dataset.observations.shape[1:], indices=(), center=(0.0,), scale=(1.0,), clip=everything, source=SOURCE, **spaces)

    @functools.cached_property
    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """Of one observation, and of actions."""
        whose = f"card of {self.env_id}"
        return read_space(self.observation_space, "observation_space", whose), read_space(self.action_space, "action_space", whose)

    @property
    def _declared_actions(self) -> gym.Space | None:
        return None if self.declared_actions is None else read_space(self.declared_actions, "action_space", f"card of {self.env_id}")

    @property
    def declared(self) -> dict:
        """What a certificate says of it (certify/file/evidence.py)."""
        _, actions = self.spaces
        spaces: list = [self.observation_space, self.action_space]
        if self.observation_parts or self.declared_actions:
            spaces += [list(self.observation_parts), self.declared_actions, list(self.observation_keys)]
        components = list(Actions(declared=actions).components)
        return {
            "observation_shape": [int(length) for length in self.without_history().observation_shape],
            "actions": int(actions.n) if isinstance(actions, gym.spaces.Discrete) else sum(components),
            "dimensions": 0 if isinstance(actions, gym.spaces.Discrete) or components else int(np.prod(shape_of(actions))),
            "sha256": hashlib.sha256(json.dumps(spaces).encode()).hexdigest(),
        } | ({"components": components} if components else {})

    def one_hot(self) -> "DeclaredCard":
        """This card of one observation, where whole numbers in a Discrete or MultiDiscrete space are declared of those one-hot."""
        observations, _ = self.spaces
        if self.mirror or not isinstance(observations, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            return self
        joined = Observations.of(observations)
        return dataclasses.replace(self, observation_space=serialize_space(joined.space), observation_shape=tuple(joined.space.shape), observation_parts=joined.words)

    def make(self) -> gym.Env:
        """The spaces, in the place of an environment."""
        spaces = DeclaredSpaces(*self.spaces)
        return spaces if self.history == 1 else gym.wrappers.FrameStackObservation(spaces, self.history, padding_type="reset")

    @property
    def is_as_registered(self) -> bool:
        return False

    def discounted_range(self, discount: float) -> tuple[float, float]:
        raise MucdError("there is no environment, hence no public range of returns: of an algorithm that needs one give the constants v_min and v_max (--constant v_min=0 --constant v_max=100)")

    def clipped(self, returns: np.ndarray) -> np.ndarray:
        raise MucdError("there is no environment, hence no range of returns")

    def check(self, dataset: OfflineDataset) -> None:
        """Raise MucdError unless the dataset declares the same observations, part by part, and the same actions."""
        shape, (observations, actions) = tuple(self.without_history().observation_shape), self.spaces
        if self._shape_in(dataset) != shape or dataset.action_space != actions or dataset.declared_actions != self._declared_actions:
            raise MucdError(
                f"dataset {dataset.name} declares observations of shape {dataset.observations.shape[1:]} and actions in {shown(dataset.declared_actions or dataset.action_space)}, but asked for are "
                f"observations of shape {shape} and actions in {shown(self._declared_actions or actions)}"
            )
        recorded, asked = read_as(dataset.observation_space, dataset.observation_parts), read_as(observations, self.observation_parts)
        if recorded != asked:
            there, here = next((one, other) for one, other in itertools.zip_longest(recorded, asked) if one != other)
            raise MucdError(f"dataset {dataset.name} declares observations with {there or 'nothing'!s:.200} where {here or 'nothing'!s:.200} is asked for: name one that declares the same")

    def to_dict(self) -> dict:
        # Runs of earlier versions do not have the latter two.
        return {name: value for name, value in super().to_dict().items() if name != "return_range" and (name, value) not in (("observation_parts", []), ("declared_actions", None))}


def card_from(values: dict) -> EnvironmentCard:
    """The card of a run folder, of either kind. Raises MucdError."""
    return (DeclaredCard if isinstance(values, dict) and "action_space" in values else EnvironmentCard).from_dict(values)
