"""Making Gymnasium environments by id."""

import importlib
import warnings

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.modules import look_in_working_folder, told

# What an environment's id starts with: (the module it needs, the extra of this package that installs it).
EXTRAS = {
    "ALE/": ("ale_py", "atari"),
    **dict.fromkeys(("LunarLander", "BipedalWalker", "CarRacing"), ("Box2D", "box2d")),
    **dict.fromkeys(
        ("Ant-", "HalfCheetah-", "Hopper-", "Humanoid", "Inverted", "Pusher-", "Reacher-", "Swimmer-", "Walker2d-"), ("mujoco", "mujoco")
    ),
    "highway-": ("highway_env", "highway"),
}
# Other packages that register environments, by what their ids start with, and how pip calls them. An id that somebody has registered already needs none.
REGISTERING = {
    **dict.fromkeys(("MiniGrid-", "BabyAI-"), ("minigrid", "minigrid")),
    "MiniWorld-": ("miniworld", "miniworld"),
    "MiniHack-": ("minihack", "minihack"),
    **dict.fromkeys(
        ("Fetch", "HandReach", "HandManipulate", "AdroitHand", "PointMaze_", "AntMaze_", "FrankaKitchen"), ("gymnasium_robotics", "gymnasium-robotics")
    ),
    "Panda": ("panda_gym", "panda-gym"),
    "Meta-World/": ("metaworld", "metaworld"),
    "dm_control/": ("shimmy", "'shimmy[dm-control]'"),
    "FlappyBird-": ("flappy_bird_gymnasium", "flappy-bird-gymnasium"),
    "PyFlyt/": ("PyFlyt.gym_envs", "pyflyt"),
    **dict.fromkeys(("antmaze-", "humanoidmaze-", "pointmaze-", "antsoccer-", "cube-", "scene-", "puzzle-", "powderworld-"), ("ogbench", "ogbench")),
}


class StepLimit(gym.wrappers.TimeLimit):
    """A time limit that leaves an episode which ends by itself at its last step as it is: terminated, not truncated."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._elapsed_steps += 1
        return observation, reward, terminated, truncated or (not terminated and self._elapsed_steps >= self._max_episode_steps), info


class AsPromised(gym.Wrapper):
    """An environment that answers as Gymnasium says: its code may be the user's, and what fails in it is told in a line."""

    @property
    def spec(self):
        return self.env.spec

    def reset(self, **options):
        try:
            observation, info = self.env.reset(**options)
            self._check(observation)
            return observation, info
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def step(self, action):
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check(observation)
            return observation, float(reward), bool(terminated), bool(truncated), info
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error

    def _check(self, observation) -> None:
        shape = self.observation_space.shape
        if shape is not None and np.shape(observation) != shape:
            raise ValueError(f"an observation of shape {np.shape(observation)}, declared are {shape}")

    def _failure(self, error: BaseException) -> BaseException:
        # Ray's own way to end a worker, whose work another one does, is no failure of the environment.
        return error if isinstance(error, MucdError | MemoryError) or hasattr(error, "ray_terminate_msg") else MucdError(f"environment {self.spec.id} fails ({told(error)}): mend it")


def make_environment(env_id: str, **kwargs) -> gym.Env:
    """A fresh environment; the package that an id needs is imported on first use.

    Raises:
        MucdError: the package is not installed, Gymnasium does not know the id, or the environment's code refuses the arguments.
    """
    name = env_id.rpartition(":")[2]
    for prefix, (module, extra) in EXTRAS.items():
        if name.startswith(prefix):
            _set_up(env_id, module, extra)
    for prefix, (module, package) in REGISTERING.items():
        if name.startswith(prefix) and name not in gym.registry and ":" not in env_id:
            _register(env_id, module, package)
    if ":" in env_id:
        look_in_working_folder()
    try:
        return AsPromised(gym.make(env_id, disable_env_checker=True, **kwargs))
    except gym.error.UnregisteredEnv as error:
        raise MucdError(
            f"environment {env_id!r} cannot be made ({printable(error)}): give an installed Gymnasium id, and with --import MODULE the package that registers it, if that is not Gymnasium's own"
        ) from None
    except (Exception, SystemExit) as error:  # the code of any environment, and what it imports
        raise MucdError(f"environment {env_id!r} cannot be made ({printable(error) or type(error).__name__}): give an installed Gymnasium id and its arguments") from error


def spec_of(environment: gym.Env) -> EnvSpec:
    """Of an environment that Gymnasium has made, as all here are."""
    assert environment.spec is not None
    return environment.spec


def limited(environment: gym.Env, env_id: str, max_episode_steps: int | None) -> gym.Env:
    """The environment whose episodes are cut after `max_episode_steps`, if that is given and less than the limit that it is registered with.

    Raises:
        MucdError: nothing limits its episodes: a policy may keep one going for ever; or the number is above what does, and would be claimed in vain.
    """
    registered = spec_of(environment).max_episode_steps
    if max_episode_steps is not None and shortens(max_episode_steps, registered):
        return StepLimit(environment, max_episode_steps)
    try:
        check_steps(env_id, max_episode_steps, registered)
        if (registered or 0) < 1:  # -1 takes the registered one away
            raise MucdError(
                f"{env_id} has no time limit, and a policy that never ends an episode would run for ever: say after how many steps episodes are cut, --max-episode-steps N, or give a card with "
                "max_episode_steps"
            )
    except MucdError:
        environment.close()
        raise
    return environment


def check_steps(env_id: str, limit: int | None, registered: int | None) -> None:
    """Raise MucdError where `limit` is above the one with which Gymnasium makes the environment: no episode would get there."""
    if limit is not None and registered is not None and 1 <= registered < limit:
        raise MucdError(
            f"{env_id} cuts its episodes after {registered} steps, and max_episode_steps {limit} would change nothing: give at most {registered} (--max-episode-steps, or in the card), "
            f"leave it out, or have it made with another limit, --make-kwargs '{{\"max_episode_steps\": {limit}}}'"
        )


def shortens(limit: int | None, registered: int | None) -> bool:
    """Whether `limit` is below the one with which Gymnasium makes the environment."""
    return limit is not None and (registered is None or registered < 1 or limit < registered)


def _register(env_id: str, module: str, package: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # any package
        raise MucdError(
            f"environment {env_id!r} is registered by {module}, which cannot be imported ({printable(error)}): pip install {package}, or name the module that registers yours with --import"
        ) from None


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
