"""A public reading of highway-fast-v0's observation: what a controller and a card's features are made of."""

import numpy as np

LEFT, IDLE, RIGHT, FASTER, SLOWER = 0, 1, 2, 3, 4

# The observation has rows (presence, x, y, vx, vy): the ego vehicle, then the four nearest, relative to it. One unit of x is 200 m, of y 12 m.
_LANE, _ROAD = 4 / 12, 2 * 4 / 12  # width of a lane; the ego vehicle's y in the lowest of the three lanes
_ALONGSIDE = -0.06  # a vehicle less than 12 m behind still blocks its lane


def gaps(observation: np.ndarray) -> np.ndarray:
    """Seven features of the traffic.

    Args:
        observation: [..., 5, 5], observations of highway-fast-v0.
    Returns:
        float64 [..., 7]: free distance ahead (units of 200 m, at most 1) in the own lane, the left one and the right one (-1 where there is
        none), speed relative to the vehicle ahead (0 without one; negative when closing in), own speed, own lane (y), heading across (vy).
    """
    observation = np.asarray(observation, np.float64)
    ego, others = observation[..., 0, :], observation[..., 1:, :]
    present, x, y, speed = (others[..., column] for column in range(4))

    def ahead(shift):
        blocks = (present > 0.5) & (np.abs(y - shift) < _LANE / 2) & (x > _ALONGSIDE)
        return np.where(blocks, x, 1.0)

    own, left, right = (ahead(shift) for shift in (0.0, -_LANE, _LANE))
    nearest = own.argmin(-1)[..., None]
    front = own.min(-1)
    closing = np.where(front < 1, np.take_along_axis(speed, nearest, -1)[..., 0], 0.0)
    left = np.where(ego[..., 2] > _LANE / 2, left.min(-1), -1.0)
    right = np.where(ego[..., 2] < _ROAD - _LANE / 2, right.min(-1), -1.0)
    return np.stack([front, left, right, closing, ego[..., 3], ego[..., 2], ego[..., 4]], axis=-1)


def drive(observation: np.ndarray) -> int:
    """Fast on a free lane; behind another vehicle change to the lane with most room, or brake.

    Args:
        observation: [5, 5], one observation.
    """
    front, left, right, *_ = gaps(observation)
    if front > 0.2:
        return FASTER
    if front > 0.14:
        return IDLE
    if max(left, right) > max(front + 0.03, 0.12):
        return RIGHT if right >= left else LEFT
    return SLOWER
