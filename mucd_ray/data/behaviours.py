"""Scripted behaviour policies: controllers with stated noise, for recording mixed-quality datasets."""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from mucd_ray.data import freeway
from mucd_ray.errors import MucdError

NOISE_LEVELS = (0.0, 0.1, 0.3, 0.6, 1.0)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A named controller of one environment.

    Attributes:
        name, env_id, description: what it is.
        act: observation -> action, deterministic and without memory.
        noise: levels from which `mucd record` draws one per episode; a level is the probability of a uniformly random action.
    """

    name: str
    env_id: str
    description: str
    act: Callable[[np.ndarray], int]
    noise: tuple[float, ...] = NOISE_LEVELS

    def policy(self, level: float, action_space: gym.spaces.Discrete, rng: np.random.Generator) -> Callable[[np.ndarray], int]:
        """The controller with noise `level`, all randomness from `rng`."""

        def act(observation):
            if rng.random() < level:
                return int(action_space.start + rng.integers(action_space.n))
            return self.act(observation)

        return act


def linear_switch(weights, low: int, high: int) -> Callable[[np.ndarray], int]:
    """The bang-bang controller: `high` where weights . observation > 0, else `low`."""
    weights = np.array(weights)
    return lambda observation: high if observation @ weights > 0 else low


BEHAVIOURS = {
    behaviour.name: behaviour
    for behaviour in (
        # Weights chosen by hand: any positive ones near these keep the pole up for all 500 steps.
        Behaviour(
            name="cartpole-balance", env_id="CartPole-v1", description="linear feedback on all four entries; 500 without noise",
            act=linear_switch((0.1, 0.5, 3.0, 1.0), low=0, high=1),
        ),
        # Cross-entropy search: 15 rounds of 40 draws, 6 episodes each, best 8 kept (13 s); rounded to one decimal.
        Behaviour(
            name="acrobot-swing", env_id="Acrobot-v1", description="linear switch between full torques; about -83 without noise",
            act=linear_switch((0.0, 0.5, -0.3, -1.3, -0.3, 0.9), low=0, high=2),
        ),
        Behaviour(
            name="freeway-lookahead", env_id="ALE/Freeway-v5", description="goes up unless the next cars would hit it; about 30 without noise",
            act=freeway.lookahead,
        ),
    )
}


def behaviour_for(env_id: str, name: str | None = None) -> Behaviour:
    """The named behaviour of an environment, or its first one.

    Raises:
        MucdError: unknown name, or none for this environment.
    """
    fitting = [behaviour for behaviour in BEHAVIOURS.values() if behaviour.env_id == env_id and name in (None, behaviour.name)]
    if not fitting:
        known = ", ".join(f"{behaviour.name} ({behaviour.env_id})" for behaviour in BEHAVIOURS.values())
        wanted = f"behaviour {name!r}" if name else "behaviour"
        raise MucdError(f"no {wanted} for {env_id!r}: the recordable ones are {known}")
    return fitting[0]


def behaviour_catalogue() -> list[dict]:
    """What can be recorded, for listings: name, env_id, description and noise levels."""
    return [
        {"name": behaviour.name, "env_id": behaviour.env_id, "description": behaviour.description, "noise": list(behaviour.noise)}
        for behaviour in BEHAVIOURS.values()
    ]
