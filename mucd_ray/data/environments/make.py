"""Making Gymnasium environments by id."""

import importlib
import warnings

import gymnasium as gym

from mucd_ray.errors import MucdError
from mucd_ray.files import printable

# What an environment's id starts with: (the module it needs, the extra of this package that installs it).
EXTRAS = {
    "ALE/": ("ale_py", "atari"),
    **dict.fromkeys(("LunarLander", "BipedalWalker", "CarRacing"), ("Box2D", "box2d")),
    **dict.fromkeys(
        ("Ant-", "HalfCheetah-", "Hopper-", "Humanoid", "Inverted", "Pusher-", "Reacher-", "Swimmer-", "Walker2d-"), ("mujoco", "mujoco")
    ),
    "highway-": ("highway_env", "highway"),
}


class StepLimit(gym.wrappers.TimeLimit):
    """A time limit that leaves an episode which ends by itself at its last step as it is: terminated, not truncated."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._elapsed_steps += 1
        return observation, reward, terminated, truncated or (not terminated and self._elapsed_steps >= self._max_episode_steps), info


def make_environment(env_id: str, **kwargs) -> gym.Env:
    """A fresh environment; the package that an id needs is imported on first use.

    Raises:
        MucdError: the package is not installed, Gymnasium does not know the id, or the environment's code refuses the arguments.
    """
    for prefix, (module, extra) in EXTRAS.items():
        if env_id.rpartition(":")[2].startswith(prefix):
            _set_up(env_id, module, extra)
    try:
        return gym.make(env_id, disable_env_checker=True, **kwargs)
    except Exception as error:  # the code of any environment, and what it imports
        raise MucdError(f"environment {env_id!r} cannot be made ({printable(error) or type(error).__name__}): give an installed Gymnasium id and its arguments") from error


def _set_up(env_id: str, module: str, extra: str) -> None:
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        raise MucdError(f"environment {env_id!r} needs {module}, which is not installed ({error}): in a clone of this project run pip install '.[{extra}]' -c constraints.txt") from error
    if module == "ale_py":
        package.ALEInterface.setLoggerMode(package.LoggerMode.Error)
        gym.register_envs(package)
    # Without a handler MuJoCo writes every warning to a file in the working folder; each environment made would add one on its own XML.
    if module == "mujoco" and package.get_mju_user_warning() is None:
        package.set_mju_user_warning(lambda text: None if "deprecated" in text else warnings.warn(f"MuJoCo: {text}", stacklevel=2))
