"""Making Gymnasium environments by id."""

import gymnasium as gym

from mucd_ray.errors import MucdError


def make_environment(env_id: str, **kwargs) -> gym.Env:
    """A fresh environment; Atari ids ("ALE/...") register themselves on first use.

    Raises:
        MucdError: Gymnasium does not know the id or refuses the arguments.
    """
    if env_id.startswith("ALE/"):
        import ale_py  # imported here: the emulator is not needed by anyone else

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        gym.register_envs(ale_py)
    try:
        return gym.make(env_id, disable_env_checker=True, **kwargs)
    except (gym.error.Error, TypeError, ImportError) as error:
        raise MucdError(f"environment {env_id!r} cannot be made ({error}): give an installed Gymnasium id and its arguments") from error
