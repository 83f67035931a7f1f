"""Following everything that a policy could be made to do in one episode whose randomness is fixed by a seed.

Any environment that is deterministic given its seed can be stepped from any prefix of actions: it is reset with the seed, and the prefix is taken again. Every
prefix that is taken again must give the same observations and rewards bit for bit, and that of the whole episode of the policy itself is always tried once.
"""

from collections.abc import Callable

import gymnasium
import numpy as np

from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.rollouts import Progress, check_reward

# Environments that are kept at the nodes they have come to; others begin anew when they are needed.
LIVE = 64


class Episode:
    """The tree of an episode, node by node: node 0 is its beginning.

    Args:
        look: observations [n, *observation_shape] -> int [n, A], what decides at each of them; asked once per node.
        votes: keeps these rows and judges them: `add(rows)` gives their numbers, `choice(row)` the action that the policy takes, `possible(row, radius, width)`
            the actions that it could be made to take within a radius where `width` nodes are possible at the same time (certify/voted_return.py).
        progress: called again and again meanwhile.

    Attributes:
        rows: per node the number of its row.
        steps: per node, by action: (reward, next node, or 0 where the episode ends).

    Raises:
        MucdError: the environment does not repeat itself, its actions are not discrete, or a reward leaves the card's range.
    """

    def __init__(self, card: EnvironmentCard, seed: int, look: Callable[[np.ndarray], np.ndarray], votes, progress: Progress | None = None):
        self.card, self.seed, self.look, self.votes, self.progress = card, int(seed), look, votes, progress
        self.idle = [card.make()]
        self.live: dict[int, gymnasium.Env] = {}
        space = self.idle[0].action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            raise MucdError(f"the voted policy's return is certified for discrete actions, {card.env_id} has {space}")
        self.space = space
        self.rows: list[int] = []
        self.steps: list[dict[int, tuple[float, int]]] = []
        self.came: list[tuple[int, int] | None] = []
        self.depth: list[int] = []
        self.seen: list[np.ndarray] = []
        self.merged: dict[tuple, int] = {}
        environment = self.idle.pop()
        observation, _ = environment.reset(seed=self.seed)
        self._look([self._node(None, 0, observation, environment)])

    def play(self) -> None:
        """The episode of the policy itself, to its end; then once more in another environment, to see that it repeats itself."""
        node = 0
        while True:
            action = self.votes.choice(self.rows[node])
            if action not in self.steps[node]:
                self._step([(node, action)])
            reward, after = self.steps[node][action]
            if not after:
                break
            node = after
        environment = self._again(node, self.card.make())
        found = environment.step(self.space.start + action)
        self._same(found[1], reward, found[2] or found[3], True)
        self.idle.append(environment)

    def follow(self, radius: int, most_nodes: int) -> bool:
        """Follow everything that is possible within `radius` to its end; False where that takes more than `most_nodes` nodes in all."""
        level = [0]
        while level:
            possible = [(node, action) for node in level for action in self.votes.possible(self.rows[node], radius, len(level))]
            new = [(node, action) for node, action in possible if action not in self.steps[node]]
            if len(self.rows) + len(new) > most_nodes:
                return False
            self._step(new)
            level = sorted({self.steps[node][action][1] for node, action in possible} - {0})
        return True

    def in_order(self) -> tuple[list[int], list[dict[int, tuple[float, int]]]]:
        """`rows` and `steps` with nodes numbered by their depth: what was followed later may lead to a node that was there before."""
        order = sorted(range(len(self.rows)), key=self.depth.__getitem__)
        number = {node: place for place, node in enumerate(order)}  # of node 0, which also says that an episode ends, 0
        return [self.rows[node] for node in order], [{action: (reward, number[after]) for action, (reward, after) in self.steps[node].items()} for node in order]

    def close(self) -> None:
        for environment in (*self.idle, *self.live.values()):
            environment.close()

    def _node(self, came: tuple[int, int] | None, depth: int, observation: np.ndarray, environment) -> int:
        node = len(self.steps)
        self.steps.append({})
        self.came.append(came)
        self.depth.append(depth)
        # Some environments write into the array that they have handed out.
        self.seen.append(np.array(observation))
        self.live[node] = environment
        if len(self.live) > LIVE:
            self.idle.append(self.live.pop(next(iter(self.live))))
        return node

    def _look(self, nodes: list[int]) -> None:
        if nodes:
            self.rows += self.votes.add(self.look(np.stack([self.seen[node] for node in nodes])))

    def _step(self, steps: list[tuple[int, int]]) -> None:
        """Take an action at each of these nodes."""
        new = []
        for node, action in steps:
            environment = self.live.pop(node, None)
            if environment is None:
                environment = self._again(node, self.idle.pop() if self.idle else self.card.make())
            observation, reward, terminated, truncated, _ = environment.step(self.space.start + action)
            check_reward(self.card, float(reward))
            key = None if terminated or truncated else state_key(environment)
            # What follows is the same where the state is, and what policies see of the past.
            place = (self.depth[node] + 1, key, np.asarray(observation).tobytes())
            if terminated or truncated or key is not None and place in self.merged:
                after = 0 if terminated or truncated else self.merged[place]
                self.idle.append(environment)
            else:
                after = self._node((node, action), self.depth[node] + 1, observation, environment)
                new.append(after)
                if key is not None:
                    self.merged[place] = after
            self.steps[node][action] = (float(reward), after)
            if self.progress is not None:
                self.progress()
        self._look(new)

    def _again(self, node: int, environment):
        """The environment at this node, from the beginning of the episode."""
        path = []
        while (came := self.came[node]) is not None:
            path.append(came)
            node = came[0]
        observation, _ = environment.reset(seed=self.seed)
        self._same(observation, self.seen[0])
        for parent, action in reversed(path):
            observation, reward, terminated, truncated, _ = environment.step(self.space.start + action)
            expected, after = self.steps[parent][action]
            self._same(reward, expected, terminated or truncated, False, observation, self.seen[after])
            if self.progress is not None:
                self.progress()
        return environment

    def _same(self, *pairs) -> None:
        for found, expected in zip(pairs[::2], pairs[1::2]):
            if not np.array_equal(np.asarray(found, dtype=float), np.asarray(expected, dtype=float), equal_nan=True):
                raise MucdError(
                    f"{self.card.env_id} does not repeat itself: the same actions after the same seed gave something else. Then no episode can be followed, and the voted policy's return "
                    "is not certified: leave --policy vote, or --rule, out"
                )


def _tabular(environment) -> tuple:
    return int(environment.s), str(environment.np_random.bit_generator.state)


# Environments whose whole state can be compared, by the module that defines them. Of others every prefix of actions is a node of its own.
STATES = {"gymnasium.envs.toy_text.frozen_lake": _tabular, "gymnasium.envs.toy_text.cliffwalking": _tabular}

# Wrappers by module and name: one that may leave parts of an observation out; one that remembers what it shows; and those that remember nothing, or the number of steps alone.
FLATTENED, STACKED = ("mucd_ray.data.environments.plain", "PlainSpaces"), ("gymnasium.wrappers.stateful_observation", "FrameStackObservation")
FORGETFUL = {
    FLATTENED, ("gymnasium.wrappers.common", "TimeLimit"), ("gymnasium.wrappers.common", "OrderEnforcing"), ("gymnasium.wrappers.common", "PassiveEnvChecker"),
    ("mucd_ray.data.environments.make", "AsPromised"), ("mucd_ray.data.environments.make", "StepLimit"),
}


def state_key(environment: gymnasium.Env) -> tuple | None:
    """What two environments at the same step of the same episode have in common if and only if all that follows is the same; None where nobody knows."""
    shown = True  # whether policies see the observations of this layer as they are
    while isinstance(environment, gymnasium.Wrapper):
        kind = (type(environment).__module__, type(environment).__name__)
        if kind not in FORGETFUL and not (kind == STACKED and shown):
            return None  # it may remember what policies do not see
        shown, environment = shown and kind != FLATTENED, environment.env
    return STATES[type(environment).__module__](environment) if type(environment).__module__ in STATES else None
