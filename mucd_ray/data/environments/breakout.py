"""A public model of Breakout's ball, read from its RAM: what a controller and a card's features are made of."""

import gymnasium as gym
import numpy as np

NOOP, FIRE, RIGHT, LEFT = 0, 1, 2, 3

# Places in the RAM and geometry in pixels, read off recordings in the emulator (frame skip 4).
_PADDLE, _BALL_X, _BALL_Y, _SPEED_Y, _SPEED_X = 72, 99, 101, 103, 105
_X_OF = np.array([5.5, 3.5, -2.0, -5.0, -5.0])  # pixels a step for RAM values -2 ... 2: the state holds no finer speed
_Y_OF = np.array([-7.0, -4.0, 4.0, 4.25, 8.0])
_WALLS, _PADDLE_HEIGHT = (57.0, 199.0), 178.0
_MIDDLE = 7.0  # of the paddle, right of its place
_DEAD_ZONE = 10.0  # a step moves the paddle by up to 24 pixels
_TRUST = 0.8  # in the predicted place: the speed across is known roughly only


class Serve(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Serves by itself: while no ball is in play every action counts as FIRE, as in the usual evaluation of Atari agents (Mnih et al. 2015)."""

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action):
        in_play = self.unwrapped.ale.getRAM()[_BALL_Y] > 0
        return super().step(action if in_play else FIRE)


def ball_and_paddle(ram: np.ndarray) -> np.ndarray:
    """Eight features of the game.

    Args:
        ram: [..., 128], observations of ALE/Breakout-v5 with obs_type="ram".
    Returns:
        float64 [..., 8]: gap (pixels by which the ball will come down right of the paddle's middle, from its position and speed; while it
        rises, by which it is right of it now), gap limited to [-10, 10], [gap above 10], [gap below -10], [ball in play], [ball falls], its height above
        the paddle, the paddle's distance from the middle of the field. Without a ball in play gaps and height are 0.
    """
    ram = np.asarray(ram)
    paddle, x, y = (ram[..., place].astype(np.float64) for place in (_PADDLE, _BALL_X, _BALL_Y))
    in_play = y > 0
    speed_x, speed_y = (table[_signed(ram[..., place]) + 2] for table, place in ((_X_OF, _SPEED_X), (_Y_OF, _SPEED_Y)))
    falls, height = in_play & (speed_y > 0), _PADDLE_HEIGHT - y
    landing = np.where(falls, x + speed_x * np.maximum(height, 0) / np.abs(speed_y), x)
    low, high = _WALLS
    landing = low + np.abs((landing - low + (high - low)) % (2 * (high - low)) - (high - low))  # reflected by the walls
    gap = np.where(in_play, x + _TRUST * (landing - x) - paddle - _MIDDLE, 0.0)
    return np.stack(
        [
            gap, np.clip(gap, -_DEAD_ZONE, _DEAD_ZONE), gap > _DEAD_ZONE, gap < -_DEAD_ZONE, in_play, falls, np.where(in_play, height, 0.0),
            paddle + _MIDDLE - sum(_WALLS) / 2,
        ],
        axis=-1,
    ).astype(np.float64)


def _signed(byte: np.ndarray) -> np.ndarray:
    return np.clip((byte.astype(np.int64) + 128) % 256 - 128, -2, 2)


def follow(ram: np.ndarray) -> int:
    """Serve, and bring the paddle to where the ball will come down.

    Args:
        ram: [128], one observation.
    """
    _, _, right, left, in_play, *_ = ball_and_paddle(ram)
    return FIRE if not in_play else RIGHT if right else LEFT if left else NOOP
