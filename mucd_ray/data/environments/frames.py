"""Small grey frames of Atari games."""

import gymnasium as gym
import numpy as np

STACK, SIDE = 4, 42
_BLOCK = (5, 4)  # pixels of the 210 x 160 screen (four black columns added on each side) that one entry is the mean of


class AtariFrames(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Replaces the observation by the last four steps' screens, oldest first: uint8 [4, 42, 42]; an episode starts with four equal ones."""

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
        self._frames = None

    def reset(self, **kwargs):
        self._frames = None
        return super().reset(**kwargs)

    def observation(self, observation):
        screen = np.pad(self.unwrapped.ale.getScreenGrayscale(), ((0, 0), (4, 4)))
        frame = screen.reshape(SIDE, _BLOCK[0], SIDE, _BLOCK[1]).mean((1, 3)).astype(np.uint8)
        self._frames = [frame] * STACK if self._frames is None else [*self._frames[1:], frame]
        return np.stack(self._frames)
