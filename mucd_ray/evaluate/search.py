"""Following everything that a policy could be made to do in one episode whose randomness is fixed by a seed.

Any environment that is deterministic given its seed can be stepped from any prefix of actions: it is reset with the seed, and the prefix is taken again. Where the whole state can be kept
(snapshots.py), it is stepped from there. What is played again must give the same observations and rewards bit for bit: every prefix that is taken again, the whole episode of the policy itself, and
of what was stepped from states some whole ways, drawn at random.
"""

import hashlib
import zlib
from collections.abc import Callable

import gymnasium
import numpy as np

from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.rollouts import Progress, check_reward
from mucd_ray.evaluate.snapshots import Snapshots, snapshots_of

# Environments that are kept at the nodes they have come to; others begin anew when they are needed.
LIVE = 64
# Ways through the tree that are taken again from the beginning.
WAYS = 4


class Episode:
    """The tree of an episode, node by node: node 0 is its beginning.

    Args:
        look: observations [n, *observation_shape] -> what decides at each of them, as `votes` takes it; asked once per node.
        votes: keeps what decides and judges it: `add(looked, pasts)` gives the numbers of the nodes' rows, `past(row)` what of them, and of what came before, still counts at the next node (of which
            `pasts` has one for each), `choice(row)` the action that the policy takes, `possible(row, radius, width)` the actions that it could be made to take within a radius where `width` nodes
            are possible at the same time (certify/voted_return.py).
        progress: called again and again meanwhile.

    Attributes:
        rows: per node the number of its row.
        steps: per node, by action: (reward, next node, or 0 where the episode ends).
        reached: for how many steps everything was followed, each time that it was.

    Raises:
        MucdError: the environment does not repeat itself, its actions are not discrete, or a reward leaves the card's range.
    """

    def __init__(self, card: EnvironmentCard, seed: int, look: Callable, votes, progress: Progress | None = None):
        self.card, self.seed, self.look, self.votes, self.progress = card, int(seed), look, votes, progress
        environment = card.make()
        space = environment.action_space
        if not isinstance(space, gymnasium.spaces.Discrete):
            environment.close()
            raise MucdError(f"the voted policy's return is certified for discrete actions, {card.env_id} has {space}")
        self.space = space
        self.rows: list[int] = []
        self.steps: list[dict[int, tuple[float, int]]] = []
        self.came: list[tuple[int, int] | None] = []
        self.depth: list[int] = []
        self.seen: list[np.ndarray] = []
        self.merged: dict[tuple, int] = {}
        self.reached: list[int] = []
        self.walker: Replays | Copies = Replays(self, environment)
        self._look([self._node(None, 0, self.walker.begin())], [self.votes.past(None)])

    def play(self) -> None:
        """The episode of the policy itself, to its end; then once more in another environment, to see that it repeats itself. From there on states are kept, where they can be."""
        node, taken = 0, []
        while True:
            action = self.votes.choice(self.rows[node])
            if action not in self.steps[node]:
                self._step([(node, action)])
            taken.append((node, action))
            node = self.steps[node][action][1]
            if not node:
                break
        copies = self._copies(taken)
        if copies is None:
            self._repeat(taken)
        else:
            self.walker.close()
            self.walker = copies

    def _copies(self, taken: list[tuple[int, int]]) -> "Copies | None":
        """What has the state of every node on this way, each step of which was taken from such a state and gave the same; None where states cannot be kept."""
        kept = snapshots_of(environment := self.card.make())
        if kept is None:
            environment.close()
            return None
        copies = Copies(self, kept)
        try:
            self._same(copies.begin(), self.seen[0])
            copies.keep(0)
            for node, action in taken:
                observation, reward, ended, key = copies.step(node, action)
                after = self._as_before(node, action, observation, reward, ended)
                if after:
                    copies.keep(after)
                    self.merged[self._place(node, key, observation)] = after
        except MucdError:
            # There is more to its state than what is known of it, or it does not repeat itself.
            copies.close()
            return None
        return copies

    def follow(self, radius: int, most_nodes: int) -> bool:
        """Follow everything that is possible within `radius` to its end; False where that takes more than `most_nodes` nodes in all."""
        level = [0]
        self.reached.append(0)
        while level:
            possible = [(node, action) for node in level for action in self.votes.possible(self.rows[node], radius, len(level))]
            new = [(node, action) for node, action in possible if action not in self.steps[node]]
            if len(self.rows) + len(new) > most_nodes:
                return False
            self._step(new)
            level = sorted({self.steps[node][action][1] for node, action in possible} - {0})
            self.reached[-1] += 1
        return True

    def check(self) -> None:
        """Take some ways through the tree again from the beginning, if it is more than one way, and not each was taken again anyway. Raises MucdError where they give something else."""
        if all(len(taken) < 2 for taken in self.steps) or not self.walker.trusts and not self.merged:
            return
        draw = np.random.default_rng(self.seed)
        for _ in range(WAYS):
            node, taken = 0, []
            while self.steps[node]:
                taken.append((node, int(draw.choice(sorted(self.steps[node])))))
                node = self.steps[node][taken[-1][1]][1]
                if not node:
                    break
            self._repeat(taken)

    def in_order(self) -> tuple[list[int], list[dict[int, tuple[float, int]]]]:
        """`rows` and `steps` with nodes numbered by their depth: what was followed later may lead to a node that was there before."""
        order = sorted(range(len(self.rows)), key=self.depth.__getitem__)
        number = {node: place for place, node in enumerate(order)}  # of node 0, which also says that an episode ends, 0
        return [self.rows[node] for node in order], [{action: (reward, number[after]) for action, (reward, after) in self.steps[node].items()} for node in order]

    def close(self) -> None:
        self.walker.close()

    def _node(self, came: tuple[int, int] | None, depth: int, observation: np.ndarray) -> int:
        node = len(self.steps)
        self.steps.append({})
        self.came.append(came)
        self.depth.append(depth)
        # Some environments write into the array that they have handed out.
        self.seen.append(np.array(observation))
        self.walker.keep(node)
        return node

    def _look(self, nodes: list[int], pasts: list) -> None:
        if nodes:
            self.rows += self.votes.add(self.look(np.stack([self.seen[node] for node in nodes])), pasts)

    def _step(self, steps: list[tuple[int, int]]) -> None:
        """Take an action at each of these nodes."""
        new, pasts = [], []
        for node, action in steps:
            observation, reward, ended, key = self.walker.step(node, action)
            check_reward(self.card, reward)
            place = self._place(node, key, observation)
            if ended or key is not None and place in self.merged:
                after = 0 if ended else self.merged[place]
                self.walker.leave()
            else:
                after = self._node((node, action), self.depth[node] + 1, observation)
                new.append(after)
                pasts.append(self.votes.past(self.rows[node]))
                if key is not None:
                    self.merged[place] = after
            self.steps[node][action] = (reward, after)
            if self.progress is not None:
                self.progress()
        self._look(new, pasts)

    def _place(self, node: int, key: tuple | None, observation: np.ndarray) -> tuple:
        """Of what comes after this node: what follows is the same where the state is, what policies see of the past, and what the rule counts of it."""
        return self.depth[node] + 1, key, np.asarray(observation).tobytes(), self.votes.past(self.rows[node])

    def way(self, node: int) -> list[tuple[int, int]]:
        """The steps by which it was reached first."""
        taken = []
        while (came := self.came[node]) is not None:
            taken.append(came)
            node = came[0]
        return taken[::-1]

    def _repeat(self, taken: list[tuple[int, int]]) -> None:
        environment = self.card.make()
        try:
            self.again(taken, environment)
        finally:
            environment.close()

    def again(self, taken: list[tuple[int, int]], environment: gymnasium.Env) -> None:
        """Take these steps from the beginning of the episode, one after the other. Raises MucdError where they give something else than before."""
        observation, _ = environment.reset(seed=self.seed)
        self._same(observation, self.seen[0])
        for node, action in taken:
            observation, reward, terminated, truncated, _ = environment.step(self.space.start + action)
            self._as_before(node, action, observation, reward, terminated or truncated)

    def _as_before(self, node: int, action: int, observation: np.ndarray, reward, ended: bool) -> int:
        """The next node; 0 where the episode ends."""
        expected, after = self.steps[node][action]
        self._same(reward, expected, ended, not after)
        if after:
            self._same(observation, self.seen[after])
        if self.progress is not None:
            self.progress()
        return after

    def _same(self, *pairs) -> None:
        for found, expected in zip(pairs[::2], pairs[1::2]):
            if not np.array_equal(np.asarray(found, dtype=float), np.asarray(expected, dtype=float), equal_nan=True):
                raise MucdError(
                    f"{self.card.env_id} does not repeat itself: the same actions after the same seed gave something else. Then no episode can be followed, and the voted policy's return "
                    "is not certified: leave --policy vote, or --rule, out"
                )


class Replays:
    """Walks a tree with environments that are played from the beginning to where they are needed; some stay where they are. What is replayed is compared."""

    trusts = False

    def __init__(self, episode: Episode, environment: gymnasium.Env):
        self.episode = episode
        self.idle, self.live = [environment], dict[int, gymnasium.Env]()

    def begin(self) -> np.ndarray:
        self.at = self.idle.pop()
        return self.at.reset(seed=self.episode.seed)[0]

    def step(self, node: int, action: int) -> tuple[np.ndarray, float, bool, tuple | None]:
        """(observation, reward, whether the episode ends, its `state_key`); then one of `keep` and `leave`."""
        environment = self.live.pop(node, None)
        if environment is None:
            environment = self.idle.pop() if self.idle else self.episode.card.make()
            self.episode.again(self.episode.way(node), environment)
        self.at = environment
        observation, reward, terminated, truncated, _ = environment.step(self.episode.space.start + action)
        ended = terminated or truncated
        return observation, float(reward), ended, None if ended else state_key(environment)

    def keep(self, node: int) -> None:
        """The environment is at this new node."""
        self.live[node] = self.at
        if len(self.live) > LIVE:
            self.idle.append(self.live.pop(next(iter(self.live))))

    def leave(self) -> None:
        self.idle.append(self.at)

    def close(self) -> None:
        for environment in (*self.idle, *self.live.values()):
            environment.close()


class Copies:
    """Walks a tree with one environment, whose state is kept at every node: that of the first at each depth as it is, of others what differs from it."""

    trusts = True

    def __init__(self, episode: Episode, snapshots: Snapshots):
        self.episode, self.snapshots = episode, snapshots
        self.kept: list[bytes] = []
        self.models: list[bytes] = []
        self.restored, self.content = -1, b""

    def begin(self) -> np.ndarray:
        observation, _ = self.snapshots.environment.reset(seed=self.episode.seed)
        self.at = self.snapshots.take()
        return observation

    def step(self, node: int, action: int) -> tuple[np.ndarray, float, bool, tuple | None]:
        if self.restored != node:
            unpack = zlib.decompressobj(zdict=self.models[self.episode.depth[node]])
            self.restored, self.content = node, unpack.decompress(self.kept[node])
        # Even where the environment is there already: equal states are equal bytes only if they have come about in the same way.
        self.snapshots.restore(self.content)
        observation, reward, terminated, truncated, _ = self.snapshots.environment.step(self.episode.space.start + action)
        ended = terminated or truncated
        if ended:
            return observation, float(reward), ended, None
        self.at = self.snapshots.take()
        return observation, float(reward), ended, state_key(self.snapshots.environment) or (hashlib.sha256(self.at).digest(),)

    def keep(self, node: int) -> None:
        depth = self.episode.depth[node]
        if depth == len(self.models):
            self.models.append(self.at)
        pack = zlib.compressobj(level=1, zdict=self.models[depth])
        self.kept.append(pack.compress(self.at) + pack.flush())

    def leave(self) -> None:
        pass

    def close(self) -> None:
        self.snapshots.environment.close()


def _tabular(environment) -> tuple:
    return int(environment.s), str(environment.np_random.bit_generator.state)


def _taxi(environment) -> tuple:
    return (*_tabular(environment), bool(environment.fickle_step))


# Environments whose whole state can be compared, by the module that defines them: less than all that they hold. Of others it is all of it, or every prefix of actions is a node of its own.
STATES = {"gymnasium.envs.toy_text.frozen_lake": _tabular, "gymnasium.envs.toy_text.cliffwalking": _tabular, "gymnasium.envs.toy_text.taxi": _taxi}

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
