"""Behaviour policies of the user's: a function or an object in a file of his own, uniformly random actions, a model of Stable-Baselines3."""

import copy
import hashlib
import importlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from mucd_ray.data.recording.behaviours import Behaviour, Controller
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.modules import check_module_name, named_module, told

RANDOM = "random"
# In this order: what a later one loads, an earlier one may not, and the other way round they fail.
STABLE_BASELINES3 = ("PPO", "A2C", "DQN", "SAC", "TD3")


@dataclass(frozen=True, kw_only=True)
class Given(Behaviour):
    """A policy from outside as a behaviour: without noise unless the user asks for some. Its `reset()`, if it has one, is called before every episode."""

    noise: tuple[float, ...] = (0.0,)
    reset: Callable[[], object] | None = None
    sees_recorded = True

    def policy(self, level: float, action_space: gym.Space, rng: np.random.Generator) -> Controller:
        if level and not (isinstance(action_space, gym.spaces.Discrete) or isinstance(action_space, gym.spaces.Box) and action_space.is_bounded()):
            raise MucdError(f"noise {level:g} is for discrete actions and bounded continuous ones, not for {action_space}: leave --noise out")

        def act(observation):
            return self._checked(self._called(self.controller, copy.deepcopy(observation)), action_space)

        if self.reset is not None:
            self._called(self.reset)
        return replace(self, controller=act)._with_noise(level, action_space, rng) if level else act

    def _with_noise(self, level, action_space, rng) -> Controller:
        return super().policy(level, action_space, rng)

    def _called(self, function, *arguments):
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:  # the user's code
            raise MucdError(f"--policy {self.name} fails ({told(error)}): mend it; nothing is recorded") from error

    def _checked(self, action, space: gym.Space):
        """The action in the type of its space: what policies return as arrays, floats of another width or one-element lists is taken as it is meant."""
        taken = action
        try:
            if isinstance(space, gym.spaces.Discrete):
                number = np.asarray(action).reshape(()).item()
                taken = int(number) if number == int(number) else action
            elif isinstance(space, gym.spaces.Box):
                taken = np.asarray(action).astype(space.dtype).reshape(space.shape)
        except (ValueError, TypeError, OverflowError):
            pass
        if not space.contains(taken):
            raise MucdError(f"--policy {self.name} returns {printable(action)!r:.200}, which is no action in {space}: let it return one; nothing is recorded")
        return taken


@dataclass(frozen=True, kw_only=True)
class Random(Given):
    """Uniformly random actions, as the action space samples them."""

    def policy(self, level: float, action_space: gym.Space, rng: np.random.Generator) -> Controller:
        if level:
            raise MucdError(f"noise {level:g} says nothing to random actions: leave --noise out")
        space = copy.deepcopy(action_space)
        space.seed(int(rng.integers(1 << 31)))
        return lambda observation: space.sample()


def given_policy(name: str, env_id: str) -> Given:
    """The policy of `--policy`: `random`, `path/to/file.py:name`, `package.module:name`, or a `.zip` of Stable-Baselines3. Files are the user's own: they are executed.

    Raises:
        MucdError: there is none, it cannot be imported, or it is nothing to call.
    """
    if name == RANDOM:
        return Random(name=RANDOM, env_id=env_id, description="uniformly random actions", controller=lambda observation: 0)
    if name.endswith(".zip"):
        return Given(name=Path(name).name, env_id=env_id, description=f"Stable-Baselines3 model {_named(name, name)}", controller=_stable_baselines3(name))
    where, _, called = name.rpartition(":")
    if not where or not called.isidentifier():
        raise MucdError(f"--policy {name} is none: give path/to/file.py:function or package.module:function, a Stable-Baselines3 file model.zip, or {RANDOM}")
    check_module_name(where, "--policy")
    try:
        module = named_module(where)
        policy = getattr(module, called)
        policy = policy() if isinstance(policy, type) else policy
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise MucdError(f"--policy {name} cannot be used ({told(error)}): give path/to/file.py:function or package.module:function, which Python finds here") from None
    act, reset = getattr(policy, "act", policy), getattr(policy, "reset", None)
    if not callable(act) or not (reset is None or callable(reset)):
        raise MucdError(f"--policy {name} is a {type(policy).__name__}: give a function from an observation to an action, or an object that can be called so (or has act), and may have reset")
    label = f"{Path(where).name}:{called}"
    return Given(name=label, env_id=env_id, description=f"policy {_named(label, getattr(module, '__file__', None))}", controller=act, reset=reset)


def _named(label: str, file: str | None) -> str:
    return Path(label).name + (f" (sha256 {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]})" if file else "")


def _stable_baselines3(path: str) -> Controller:
    """The model's deterministic actions. The file holds pickles: loading it runs what its maker put there."""
    if not zipfile.is_zipfile(path):
        raise MucdError(f"--policy {path} is no zip file: give one that Stable-Baselines3 has saved")
    try:
        library = importlib.import_module("stable_baselines3")
    except Exception as error:  # any package
        raise MucdError(f"--policy {path} needs stable_baselines3, which cannot be imported ({printable(error)}): pip install stable-baselines3") from None
    reasons = []
    for kind in STABLE_BASELINES3:
        try:
            model = getattr(library, kind).load(path, device="cpu")
            return lambda observation: model.predict(observation, deterministic=True)[0]
        except Exception as error:  # whatever another kind of model lacks
            reasons.append(f"{kind}: {printable(error)[:60]}")
    raise MucdError(f"--policy {path} is no model of {', '.join(STABLE_BASELINES3)} ({'; '.join(reasons)}): load it in a file of your own, --policy my.py:act")
