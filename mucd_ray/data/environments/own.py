"""What is public about an environment without a card of its own: what it declares itself, and what the user says on the command line. Nothing is taken from data."""

import dataclasses
import json
import math
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.data.environments.cards import known_card, no_card
from mucd_ray.data.environments.make import check_steps, make_environment, spec_of
from mucd_ray.data.environments.recorded_in import name_of
from mucd_ray.data.spaces import Observations, shape_of
from mucd_ray.errors import MucdError
from mucd_ray.files import LARGEST_WHOLE
from mucd_ray.modules import check_module_name

# A Box bounded by more than this says nothing about how large its entries are.
WIDEST_BOUND = 1e18
CLIP = 3.0
DECLARED = "Observation space, action space and time limit are those that the environment itself declares."
# What stands for a field that the environment does not declare.
ASKED_FOR = {
    "center": "one number for each entry of an observation, about its middle",
    "scale": "one number for each entry of an observation, about how far it goes from its center (bags, parts and trainers of yours read neither: there 0 and 1 will do)",
    "return_range": "two numbers into which the return of every episode is clipped; what is certified is counted from the lower one",
    "max_episode_steps": "after how many steps an episode is cut",
}


@dataclass(frozen=True, kw_only=True)
class UserEnvironment:
    """What the user says about the environment beside a card, or instead of one.

    Attributes:
        imports: modules that every process imports before it makes an environment, as `package.module` or `path/to/file.py`.
        make_kwargs: arguments of `gymnasium.make`; None: those of the card.
        max_episode_steps: after how many steps episodes are cut; None: the card's.
        return_range: (lo, hi) into which the return of every episode is clipped; None: the card's.

    Raises:
        MucdError: a field is outside its range.
    """

    imports: tuple[str, ...] = ()
    make_kwargs: dict | None = field(default=None)
    max_episode_steps: int | None = None
    return_range: tuple[float, float] | None = None

    def __post_init__(self):
        for name in self.imports:
            check_module_name(name, "--import")
        if len(set(self.imports)) < len(self.imports):
            raise MucdError(f"--import {' --import '.join(self.imports)} names one twice: name each once")
        if self.max_episode_steps is not None and not (type(self.max_episode_steps) is int and 1 <= self.max_episode_steps <= LARGEST_WHOLE):
            raise MucdError(f"--max-episode-steps {self.max_episode_steps} must be a whole number, at least 1 and at most {LARGEST_WHOLE:,}")
        if self.return_range is not None and not -math.inf < self.return_range[0] < self.return_range[1] < math.inf:
            raise MucdError(f"--return-range {','.join(map(str, self.return_range))} must be two finite numbers, the lower first, such as -500,330")

    @classmethod
    def of(cls, options) -> "UserEnvironment":
        """From parsed options, whichever of these a command has."""
        return cls(imports=tuple(getattr(options, "imports", None) or ()), **{name: getattr(options, name, None) for name in ("make_kwargs", "max_episode_steps", "return_range")})

    def of_card(self, card: EnvironmentCard) -> EnvironmentCard:
        """The card with what the user says instead."""
        if self.max_episode_steps is not None:
            card = dataclasses.replace(card, max_episode_steps=self.max_episode_steps)
        return card if self.return_range is None else dataclasses.replace(card, return_range=self.return_range, clip_returns=True)


def card_of(
    env_id: str, said: UserEnvironment, given: EnvironmentCard | None = None, *, scaled: bool, observation_shape: tuple[int, ...] | None = None, action_space: gym.Space | None = None,
    observation_keys: tuple[str, ...] = (),
) -> EnvironmentCard:
    """The user's card, else the shipped one that fits best, else one of a plug-in, else one of what the environment declares; with what the user says instead.

    Args:
        env_id: where no card is given the id that a dataset names, say: whatever module it names is left out, and no argument comes from there.
        given: the user's card.
        scaled: whether features are needed, and not observations as they are.
        observation_shape, action_space: choose between shipped cards, as of `shipped_card`.
        observation_keys: of a card of what the environment declares.
    Raises:
        MucdError: there is no card and no return range, or what is needed is not declared.
    """
    if given is not None and said.make_kwargs not in (None, given.make_kwargs):
        raise MucdError(f"--make-kwargs {said.make_kwargs} are not those of the card of {given.env_id}, {given.make_kwargs}: leave one of them out")
    card = given or known_card(env_id, observation_shape, action_space, said.make_kwargs)[0]
    if card is None or said.make_kwargs not in (None, card.make_kwargs):
        return declared_card(env_id, said, scaled=scaled, observation_keys=observation_keys)
    return said.of_card(card)


def declared_card(env_id: str, said: UserEnvironment, *, scaled: bool, observation_keys: tuple[str, ...] = ()) -> EnvironmentCard:
    """A card of what the environment declares, and of the return range that the user gives; observations as they are, or `scaled` by their declared bounds.

    Raises:
        MucdError: no return range, no such environment, or no bounds to scale by.
    """
    name = name_of(env_id)
    if said.return_range is None:
        raise MucdError(
            f"{no_card(name)}: give the range of its returns, --return-range LO,HI, into which they are clipped, or a card, --card FILE, as `mucd card {name} --out FILE` writes "
            "of what the environment declares"
        )
    values = declared(name, said, observation_keys)
    if any(None in values[field] for field in ("center", "scale")):
        if scaled:
            raise MucdError(
                f"{no_card(name)}, and it declares no bounds of its observations, by which noise and distances between features scale them: complete a card, "
                f"`mucd card {name} --out FILE`, and give it with --card FILE; or take --mechanism bag or partition, which need none"
            )
        values |= {"center": (0.0,), "scale": (1.0,)}
    # A declared reward range that is not true would stop a run, which needs none where returns are clipped.
    card = EnvironmentCard(**values | {"return_range": said.return_range, "reward_range": None, "source": DECLARED})
    return card if scaled else card.raw()


def declared(env_id: str, said: UserEnvironment = UserEnvironment(), observation_keys: tuple[str, ...] = ()) -> dict:
    """Fields of an `EnvironmentCard` as the environment declares them: its spaces, its time limit, its range of rewards if it has one, and the return that is registered as
    solving it. None, or None in a list, stands for what it does not declare and the user does not say.

    Raises:
        MucdError: there is no such environment, its observations are in a space that is not supported, or it cuts episodes earlier than the user says.
    """
    environment = make_environment(env_id, **(said.make_kwargs or {}))
    try:
        space, spec = environment.observation_space, spec_of(environment)
        rewards = _range_of(getattr(environment.unwrapped, "reward_range", None))
    finally:
        environment.close()
    if space.shape is None or observation_keys:  # a dictionary, say: what a run makes of it
        space = Observations.of(space, observation_keys).space
    center, scale = _scales(space)
    check_steps(env_id, said.max_episode_steps, spec.max_episode_steps)
    steps = said.max_episode_steps or (spec.max_episode_steps if (spec.max_episode_steps or 0) >= 1 else None)
    returns = said.return_range
    if returns is None and rewards is not None and steps is not None:
        returns = min(rewards[0], rewards[0] * steps), max(rewards[1], rewards[1] * steps)
    threshold = spec.reward_threshold
    return {
        "env_id": env_id,
        "make_kwargs": said.make_kwargs or {},
        "observation_shape": shape_of(space),
        **({"observation_keys": tuple(sorted(set(observation_keys)))} if observation_keys else {}),
        "indices": (),
        "center": center,
        "scale": scale,
        "clip": CLIP,
        "return_range": returns,
        "clip_returns": True,
        "reward_range": rewards,
        "max_episode_steps": steps,
        "expert_return": None if threshold is None or not math.isfinite(threshold) else float(threshold),
        "source": f"{DECLARED} What it does not declare was filled in by hand."
        + ("" if threshold is None else f" Expert return: {threshold:g}, which Gymnasium registers as what solves it."),
    }


def card_file(values: dict) -> tuple[str, list[str]]:
    """(the JSON text of a card with these fields, names of those that are still to be filled in).

    The text's list `missing` says which they are; `load_card` refuses a card in which one of them is null.
    """
    missing = [name for name in ASKED_FOR if lacks(values[name])]
    return json.dumps(values | ({"missing": missing} if missing else {}), indent=1), missing


def lacks(value) -> bool:
    return value is None or isinstance(value, list | tuple) and None in value


def _range_of(value) -> tuple[float, float] | None:
    """Two finite numbers, the lower first; None for anything else that an environment may call its range."""
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        return None
    return (low, high) if -math.inf < low <= high < math.inf else None


def _scales(space: gym.Space) -> tuple[tuple, tuple]:
    """(middle, half range) of every entry of a flattened observation, None where it has no bounds; a single one where all are alike."""
    low, high = _bounds(space)
    bounded = (np.abs(low) <= WIDEST_BOUND) & (np.abs(high) <= WIDEST_BOUND)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    width = np.where(high > low, (high - low) / 2, 1.0)
    pairs = [(float(middle), float(half)) if known else (None, None) for middle, half, known in zip((low + high) / 2, width, bounded)]
    center, scale = zip(*(pairs[:1] if len(set(pairs)) == 1 else pairs))
    return center, scale


def _bounds(space: gym.Space) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(space, gym.spaces.Discrete):
        return np.array([float(space.start)]), np.array([float(space.start + space.n - 1)])
    if isinstance(space, gym.spaces.MultiDiscrete):
        low = space.start.astype(float).reshape(-1)
        return low, low + space.nvec.reshape(-1) - 1
    if isinstance(space, gym.spaces.MultiBinary):
        return np.zeros(math.prod(space.shape)), np.ones(math.prod(space.shape))
    if not isinstance(space, gym.spaces.Box):
        raise MucdError(f"observations in {space} are not numbers: use an environment with a Box, Discrete, MultiDiscrete or MultiBinary space")
    return space.low.astype(float).reshape(-1), space.high.astype(float).reshape(-1)
