"""Evaluators of a user's, good and bad: score(policy, seed) -> number."""

import math
import os
import signal
import time

import numpy as np

CALLS = []
# Public states, and what is right there.
STATES = np.random.default_rng(8).normal(0, 0.1, (50, 4)).astype(np.float32)
RIGHT = (STATES[:, 2] + STATES[:, 3] > 0).astype(int)


def share(policy, seed):
    """Share of public states at which the policy does what is right, of half of them, by the seed."""
    rows = np.random.default_rng(seed).permutation(len(STATES))[:25]
    return float((policy.act(STATES[rows]) == RIGHT[rows]).mean())


def one_by_one(policy, seed):
    assert policy.observation_space.shape == (4,) and policy.action_space.n == 2
    return np.float32(np.mean([policy.act(state) == right for state, right in zip(STATES[:25], RIGHT)]))


def remembers(policy, seed):
    """A later score must not know of an earlier one."""
    CALLS.append(seed)
    return len(CALLS) / 2


def raises(policy, seed):
    raise KeyError("no such log")


def leaves(policy, seed):
    raise SystemExit(0)


def is_nan(policy, seed):
    return math.nan


def is_text(policy, seed):
    return "very good"


def too_high(policy, seed):
    return 7


def infinite(policy, seed):
    return math.inf


def asks_nonsense(policy, seed):
    return policy.act(np.zeros((3, 5)))


def asks_behind_the_back(policy, seed):
    from mucd_ray.learn.trainers.nursery import frame, receive

    policy._connection.sendall(frame({"shape": [1, 4], "dtype": "O"}, b"12345678"))
    receive(policy._connection)
    return 1.0


def says_nonsense(policy, seed):
    policy._connection.sendall(b"\xff" * 64)
    time.sleep(60)


def hangs(policy, seed):
    time.sleep(600)


def dies(policy, seed):
    os.kill(os.getpid(), signal.SIGSEGV)


def kills_its_parent(policy, seed):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def only_if_good(policy, seed):
    """Fails for policies that the data decide: of the default action, which is tried, it has a score."""
    actions = policy.act(STATES)
    if actions.any():
        raise RuntimeError("the policy moves")
    return 0.5


def of_one_argument(policy):
    return 1.0
