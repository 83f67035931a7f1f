"""Behaviour policies: controllers with stated noise, for recording mixed-quality datasets."""

from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from mucd_ray.data.environments import breakout, freeway, halfcheetah, highway
from mucd_ray.data.environments.recorded_in import name_of
from mucd_ray.data.recording import controllers
from mucd_ray.errors import MucdError

NOISE_LEVELS = (0.0, 0.1, 0.3, 0.6, 1.0)
GAUSSIAN_LEVELS = (0.0, 0.2, 0.4, 0.6, 1.0)

Controller = Callable[[np.ndarray], int | np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A named controller of one environment.

    Attributes:
        name, env_id, description: what it is.
        make_kwargs: those of the environment's card, where an id has several.
        controller: observation -> action; the package's own are deterministic and without memory.
        noise: levels from which `mucd record` draws one per episode. A level is the probability of a uniformly random action or, where actions
            are continuous, the standard deviation of Gaussian noise in units of half the range of an action (the sum is clipped to the range).
    """

    name: str
    env_id: str
    description: str
    make_kwargs: dict | None = field(default=None)
    controller: Controller
    noise: tuple[float, ...] = NOISE_LEVELS
    # Whether it sees what is recorded, also where that is frames and the package's own look at the emulator's RAM.
    sees_recorded = False

    def policy(self, level: float, action_space: gym.Space, rng: np.random.Generator) -> Controller:
        """The controller with noise `level` for one episode, all randomness from `rng`."""

        def random_action(observation):
            if rng.random() < level:
                return int(action_space.start + rng.integers(action_space.n))
            return self.controller(observation)

        def gaussian_noise(observation):
            low, high = action_space.low, action_space.high
            action = np.clip(self.controller(observation), low, high) + level * (high - low) / 2 * rng.standard_normal(low.shape)
            return np.clip(action, low, high).astype(action_space.dtype)

        return gaussian_noise if isinstance(action_space, gym.spaces.Box) else random_action


BEHAVIOURS = {
    behaviour.name: behaviour
    for behaviour in (
        # Weights chosen by hand: any positive ones near these keep the pole up for all 500 steps.
        Behaviour(
            name="cartpole-balance", env_id="CartPole-v1", description="linear feedback on all four entries; 500 without noise",
            controller=controllers.linear_switch((0.1, 0.5, 3.0, 1.0), low=0, high=1),
        ),
        # Cross-entropy search: 15 rounds of 40 draws, 6 episodes each, best 8 kept (13 s); rounded to one decimal.
        Behaviour(
            name="acrobot-swing", env_id="Acrobot-v1", description="linear switch between full torques; about -83 without noise",
            controller=controllers.linear_switch((0.0, 0.5, -0.3, -1.3, -0.3, 0.9), low=0, high=2),
        ),
        Behaviour(
            name="lunarlander-land", env_id="LunarLander-v3", make_kwargs={},
            description="tilts towards the pad and brakes with the height, by bang-bang control; about 238 without noise",
            controller=controllers.land_discrete,
        ),
        Behaviour(
            name="lunarlander-continuous-land", env_id="LunarLander-v3", make_kwargs={"continuous": True},
            description="tilts towards the pad and brakes with the height, by proportional control; about 280 without noise",
            controller=controllers.land_continuous, noise=GAUSSIAN_LEVELS,
        ),
        # Gains chosen by hand.
        Behaviour(
            name="pendulum-swing", env_id="Pendulum-v1", description="pumps energy, then balances; about -141 without noise",
            controller=controllers.swing_up, noise=GAUSSIAN_LEVELS,
        ),
        Behaviour(
            name="invertedpendulum-balance", env_id="InvertedPendulum-v5", description="linear feedback on all four entries; 1000 without noise",
            controller=controllers.linear([[0.5, 20.0, 1.0, 3.0]], [0.0]), noise=GAUSSIAN_LEVELS,
        ),
        Behaviour(
            name="halfcheetah-run", env_id="HalfCheetah-v5",
            description="linear feedback on four coordinates of its running, found by random search for weights that may be rough; about 3760 without noise",
            controller=halfcheetah.run, noise=(0.0, 0.1, 0.2, 0.4),
        ),
        Behaviour(
            name="hopper-hop", env_id="Hopper-v5", description="linear feedback on all eleven entries, found by random search; about 2470 without noise",
            controller=controllers.hop, noise=GAUSSIAN_LEVELS,
        ),
        Behaviour(
            name="freeway-lookahead", env_id="ALE/Freeway-v5", description="goes up unless the next cars would hit it; about 30 without noise",
            controller=freeway.lookahead,
        ),
        Behaviour(
            name="breakout-follow", env_id="ALE/Breakout-v5", description="serves, and brings the paddle to where the ball will come down; about 87 without noise",
            controller=breakout.follow,
        ),
        Behaviour(
            name="highway-drive", env_id="highway-fast-v0", description="fast on a free lane, changes lanes or brakes behind others; about 22 without noise",
            controller=highway.drive,
        ),
    )
}


def behaviour_for(env_id: str, name: str | None = None) -> Behaviour:
    """The named behaviour of an environment, or its first one.

    Raises:
        MucdError: unknown name, or none for this environment.
    """
    fitting = [behaviour for behaviour in BEHAVIOURS.values() if behaviour.env_id == name_of(env_id) and name in (None, behaviour.name)]
    if not fitting:
        known = ", ".join(f"{behaviour.name} ({behaviour.env_id})" for behaviour in BEHAVIOURS.values())
        wanted = f"behaviour {name!r}" if name else "behaviour"
        raise MucdError(f"no {wanted} for {env_id!r}: the recordable ones are {known}")
    return fitting[0]


def behaviour_catalogue() -> list[dict]:
    """What can be recorded, for listings: name, env_id, description and noise levels."""
    return [
        {"name": behaviour.name, "env_id": behaviour.env_id, "make_kwargs": behaviour.make_kwargs or {}, "description": behaviour.description, "noise": list(behaviour.noise)}
        for behaviour in BEHAVIOURS.values()
    ]
