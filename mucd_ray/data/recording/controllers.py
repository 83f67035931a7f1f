"""Controllers of the classic-control, Box2D and MuJoCo environments: observation -> action."""

from collections.abc import Callable

import numpy as np

from mucd_ray.data.environments.weights import shipped_weights


def linear_switch(weights, low: int, high: int) -> Callable[[np.ndarray], int]:
    """The bang-bang controller: `high` where weights . observation > 0, else `low`."""
    weights = np.array(weights)
    return lambda observation: high if observation @ weights > 0 else low


def linear(weights, bias) -> Callable[[np.ndarray], np.ndarray]:
    """The linear controller: weights @ observation + bias, for weights [k][d] and bias [k]."""
    weights, bias = np.array(weights), np.array(bias)
    return lambda observation: weights @ observation + bias


def _corrections(observation: np.ndarray) -> tuple[float, float]:
    """How far LunarLander should turn, and how much it should rise: proportional control with the gains of Gymnasium's demonstration
    (gymnasium.envs.box2d.lunar_lander.heuristic)."""
    x, y, vx, vy, angle, spin, left_leg, right_leg = map(float, observation)
    if left_leg or right_leg:
        return 0.0, -0.5 * vy
    tilt = np.clip(0.5 * x + vx, -0.4, 0.4)
    return 0.5 * (tilt - angle) - spin, 0.5 * (0.55 * abs(x) - y) - 0.5 * vy


def land_discrete(observation: np.ndarray) -> int:
    """LunarLander-v3: observation [8] -> 0 nothing, 1 left engine, 2 main engine, 3 right engine."""
    turn, rise = _corrections(observation)
    if rise > abs(turn) and rise > 0.05:
        return 2
    return 3 if turn < -0.05 else 1 if turn > 0.05 else 0


def land_continuous(observation: np.ndarray) -> np.ndarray:
    """LunarLander-v3 with continuous=True: observation [8] -> throttles of the main and the side engines [2], each in [-1, 1]."""
    turn, rise = _corrections(observation)
    return np.clip([20 * rise - 1, -20 * turn], -1, 1)


def swing_up(observation: np.ndarray) -> np.ndarray:
    """Pendulum-v1: observation [3] (cosine and sine of the angle from upright, speed) -> torque [1] within [-2, 2]."""
    cosine, sine, speed = map(float, observation)
    if cosine > 0.9:
        return np.clip([-10 * sine - 2 * speed], -2, 2)
    energy = speed**2 / 6 + 5 * cosine  # a rod of length and mass 1, g = 10; 5 when at rest upright
    return np.clip([2 * (5.2 - energy) * np.sign(speed)], -2, 2) if speed else np.array([2.0])


def hop(observation: np.ndarray) -> np.ndarray:
    """Hopper-v5: observation [11] -> torques [3], each in [-1, 1]."""
    found = shipped_weights("hopper")
    return np.clip(found["weights"] @ observation + found["bias"], -1, 1)
