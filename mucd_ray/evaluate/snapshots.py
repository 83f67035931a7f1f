"""The whole state of an environment as bytes: it can be stepped again from any of them, and two that are the same bytes are the same state.

An environment and its wrappers are plain Python objects: all that they hold is pickled but what no step changes, its spaces and its specification. Of Atari games the emulator's own state
stands beside them. It leaves out one thing, the action that a frame may repeat (sticky actions, Machado et al. 2018), which is followed here.
"""

import copyreg
import io
import pickle
import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from mucd_ray.errors import MucdError
from mucd_ray.files import printable

# Modules whose environments and wrappers hold all of their state in Python objects that pickle as they are.
ENVIRONMENTS = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.", "highway_env.", "ale_py.env")
WRAPPERS = ("gymnasium.wrappers.", "mucd_ray.data.environments.")
# The generator that decides on repeated actions is the last of those in an emulator's state: 624 words and a position.
GENERATOR = re.compile(rb"(?:\d+ ){624}\d+")
# It is asked for each of two players in a frame; the first is the one who plays.
DRAWS = 2
# Above it a frame that takes a new action is long in coming.
MOST_REPEATED = 0.9


class Emulator:
    """ALE's interface, which also knows the action that the next frame repeats where it does not take a new one: `cloneSystemState` leaves it out."""

    def __init__(self, ale, nothing):
        self.ale, self.nothing, self.probability = ale, nothing, ale.getFloat("repeat_action_probability")

    def __getattr__(self, name):
        return getattr(self.ale, name)

    def reset_game(self) -> None:
        """The game was loaded anew before: no action was taken yet."""
        self.ale.reset_game()
        self.repeated = self.nothing
        start = self.ale.cloneSystemState()
        self._draw_from(start)
        # A state whose next frame takes whatever action it is given.
        while not self._is_new():
            self.ale.act(self.nothing)
        self.ready = None if self.probability == 0 else self.ale.cloneSystemState()
        self.ale.restoreSystemState(start)
        self._draw_from(start)

    def act(self, action, strength=1.0):
        if self._is_new():
            self.repeated = action
        return self.ale.act(action, strength)

    def state(self) -> tuple:
        return self.ale.cloneSystemState(), self.repeated

    def restore(self, state, repeated) -> None:
        if self.repeated != repeated and self.ready is not None:
            self.ale.restoreSystemState(self.ready)
            self.ale.act(repeated)
        self.ale.restoreSystemState(state)
        self.repeated = repeated
        self._draw_from(state)

    def _draw_from(self, state) -> None:
        if self.probability == 0:
            return
        words = np.fromstring(GENERATOR.findall(state.serialize())[-1].decode(), np.uint64, sep=" ")
        self.draws = np.random.MT19937()
        self.draws.state = {"bit_generator": "MT19937", "state": {"key": words[:-1].astype(np.uint32), "pos": int(words[-1])}}

    def _is_new(self) -> bool:
        return self.probability == 0 or self.draws.random_raw(DRAWS)[0] / 2**32 >= self.probability


# What no step changes.
SHARED = (gymnasium.Space, EnvSpec, Emulator)
TABULAR = "gymnasium.envs.toy_text."


class Snapshots:
    """States of one environment. `environment` is at the one that was restored, or is stepped from there."""

    def __init__(self, environment: gymnasium.Env):
        self.environment, self.emulator = environment, None
        self._shared: list = []
        self._number: dict[int, int] = {}
        inner: Any = environment.unwrapped
        if type(inner).__module__.startswith(TABULAR) and hasattr(inner, "P"):
            # Its table of transitions.
            self._share(inner.P)
        if type(inner).__module__ == "ale_py.env":
            self.emulator = inner.ale = Emulator(inner.ale, inner._action_set[0])

    def take(self) -> bytes:
        """Raises MucdError where it holds what cannot be pickled."""
        content = io.BytesIO()
        try:
            _Pickler(content, self).dump((self.environment, self.emulator and self.emulator.state()))
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            raise MucdError(f"the state of {self.environment.spec} cannot be kept ({printable(error)})") from error
        return content.getvalue()

    def restore(self, content: bytes) -> None:
        self.environment, state = _Unpickler(io.BytesIO(content), self).load()
        if self.emulator is not None:
            self.emulator.restore(*state)

    def number(self, obj) -> int | None:
        """Of what no step changes; None of anything else."""
        found = self._number.get(id(obj))
        return self._share(obj) if found is None and isinstance(obj, SHARED) else found

    def _share(self, obj) -> int:
        self._number[id(obj)] = len(self._shared)
        self._shared.append(obj)
        return len(self._shared) - 1

    def shared(self, number: int):
        return self._shared[number]


class _Pickler(pickle.Pickler):
    def __init__(self, file, snapshots: Snapshots):
        super().__init__(file, protocol=5)
        self.snapshots = snapshots

    def persistent_id(self, obj):
        return self.snapshots.number(obj)

    def reducer_override(self, obj):
        # Some environments pickle as what makes them anew.
        return (copyreg.__newobj__, (type(obj),), vars(obj), None, None, _fill) if isinstance(obj, gymnasium.Env) else NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, snapshots: Snapshots):
        super().__init__(file)
        self.snapshots = snapshots

    def persistent_load(self, pid):
        return self.snapshots.shared(pid)


def _fill(environment: gymnasium.Env, state: dict) -> None:
    vars(environment).update(state)


def snapshots_of(environment: gymnasium.Env) -> Snapshots | None:
    """Of an environment before its first reset; None where its state is not known to be in its Python objects."""
    layer: Any = environment
    while isinstance(layer, gymnasium.Wrapper):
        if not type(layer).__module__.startswith(WRAPPERS):
            return None
        layer = layer.env
    if not type(layer).__module__.startswith(ENVIRONMENTS):
        return None
    if type(layer).__module__ == "ale_py.env" and (layer.continuous or layer.ale.getFloat("repeat_action_probability") > MOST_REPEATED):
        return None
    return Snapshots(environment)
