"""A public model of Freeway's traffic, read from its RAM: what a controller and a card's features are made of."""

import numpy as np

NOOP, UP, DOWN = 0, 1, 2
LOOKAHEAD = 6  # steps

# Geometry in pixels, read off recordings in the emulator (frame skip 4, game mode 0).
_CHICKEN, _CARS = 14, slice(108, 118)  # height of the chicken; position of the car in each lane, lowest lane first
_CAR_SPEED = np.array([4 / 5, 1, 4 / 3, 2, 4, -4, -2, -4 / 3, -1, -4 / 5])  # per step, on a ring of 160
_LANE_HEIGHT = 20.5 + 16 * np.arange(10)  # a chicken within 8 of it is in the lane
_CAR_REACH = (38, 55)  # hits happen at 40..53; two more on each side, since a car moves during a step
_LOWEST = 6
_PREFERENCE = np.array([UP, NOOP, DOWN])
_FIRST_MOVE = {NOOP: 0, UP: 4, DOWN: -4}


def clear_steps(ram: np.ndarray) -> np.ndarray:
    """Steps before a car hits the chicken, at most 6, if it moves NOOP, UP or DOWN now and UP from then on.

    Args:
        ram: [..., 128], observations of ALE/Freeway-v5 with obs_type="ram".
    Returns:
        float64 [..., 3], one number per action.
    """
    ram = np.asarray(ram)
    chicken, cars_now = ram[..., _CHICKEN, None].astype(np.float64), ram[..., _CARS].astype(np.float64)
    clear = np.full((*ram.shape[:-1], 3), float(LOOKAHEAD))
    for step in range(LOOKAHEAD, 0, -1):  # backwards, so that the earliest hit is written last
        cars = (cars_now + step * _CAR_SPEED) % 160
        crossing = (cars >= _CAR_REACH[0]) & (cars <= _CAR_REACH[1])
        for action, move in _FIRST_MOVE.items():
            height = np.maximum(chicken + move + 4 * (step - 1), _LOWEST)
            hit = ((np.abs(height - _LANE_HEIGHT) <= 8) & crossing).any(axis=-1)
            clear[..., action][hit] = step - 1
    return clear


def lookahead(ram: np.ndarray) -> int:
    """The move that stays clear of cars longest; UP, then NOOP, on ties. Earns about 30 points; always UP earns 21.

    Args:
        ram: [128], one observation.
    """
    return int(_PREFERENCE[clear_steps(ram)[_PREFERENCE].argmax()])
