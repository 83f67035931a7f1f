"""Trainers as a user writes them, in a file outside the package: honest ones, and one that does whatever a poisoned unit tells it.

A unit is poison where a reward is 1000 + k: then the learner does MISCHIEF[k].
"""

import ctypes
import os
import signal
import time

import numpy as np


class Linear:
    """Discrete actions by the best of linear scores; just an object with `act`."""

    def __init__(self, weights, first):
        self.weights, self.first = weights, first

    def act(self, observations):
        assert observations.dtype == np.float32 and len(observations) == 1
        rows = np.concatenate([observations.reshape(len(observations), -1), np.ones((len(observations), 1))], 1)
        return (rows @ self.weights).argmax(1) + self.first


def weights_of(bag):
    """Ridge regression on one indicator per action, [d + 1, A]."""
    x = bag.observations.reshape(len(bag), -1)
    rows, wanted = np.concatenate([x, np.ones((len(x), 1))], 1), np.eye(int(bag.action_space.n))[bag.actions - int(bag.action_space.start)]
    return np.linalg.solve(rows.T @ rows + 1e-3 * np.eye(rows.shape[1]), rows.T @ wanted)


def ridge(bag, seed, device):
    assert device == "cpu" and 0 <= seed < 2**32
    return Linear(weights_of(bag), int(bag.action_space.start))


def module(bag, seed, device):
    import torch

    weights = torch.tensor(weights_of(bag), dtype=torch.float32)
    policy = torch.nn.Linear(*weights[:-1].shape)
    policy.weight.data, policy.bias.data = weights[:-1].T.contiguous(), weights[-1]
    return policy


def noisy(bag, seed, device):
    """Depends on the seed alone."""
    return Linear(np.random.default_rng(seed).standard_normal((bag.observations.shape[1] + 1, int(bag.action_space.n))), 0)


class Says:
    def __init__(self, act):
        self.act = act


def _raises(bag):
    raise ValueError("no")


def _exits(bag):
    raise SystemExit(0)


def _leaves(bag):
    os._exit(3)


def _crashes(bag):
    ctypes.string_at(0)


def _hangs(bag):
    time.sleep(1000)


def _eats(bag):
    return np.ones(100 * 10**9 // 8)


def _forks(bag):
    """Children in sessions of their own, which eat what one alone may not."""
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            eaten = np.ones(30_000_000)
            time.sleep(1000 + len(eaten))
    time.sleep(1000)


def _kills(bag):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


def _hangs_up(bag):
    os.closerange(3, 100)
    time.sleep(1000)


def _not_finite(bag):
    return Says(lambda observations: np.full(1, np.nan))


def _outside(bag):
    return Says(lambda observations: np.array([7]))


def _misshapen(bag):
    return Says(lambda observations: np.zeros((1, 2), int))


def _no_policy(bag):
    return 3


def _garbage(bag):
    return b"garbage"


def _too_large(bag):
    return bytes(40 << 20)


def _dies_later(bag):
    """Once it moves to the right near the centre, where a policy that always goes right soon is."""
    return Says(lambda observations: os._exit(1) if abs(observations[0, 0]) < 0.15 and observations[0, 1] > 0.7 else np.array([1]))


# What it does, and as what that counts.
MISCHIEF = (
    (_raises, "raised"), (_exits, "raised"), (_leaves, "died"), (_crashes, "died"), (_hangs, "too slow"), (_eats, "raised"), (_forks, "too much memory"), (_kills, "died"),
    (_hangs_up, "died"), (_not_finite, "acts nowhere"), (_outside, "acts nowhere"), (_misshapen, "acts nowhere"), (_no_policy, "raised"), (_garbage, "raised"), (_too_large, "raised"),
    (_dies_later, "died"),
)


def gullible(bag, seed, device):
    poison = bag.rewards[bag.rewards >= 1000]
    return MISCHIEF[int(poison[0]) - 1000][0](bag) if len(poison) else ridge(bag, seed, device)


def of_little(bag, seed, device):
    if len(bag) > 1000:
        raise ValueError("too much data")
    return ridge(bag, seed, device)


def always_fails(bag, seed, device):
    raise ValueError("this one never learns")


def of_bags_alone(bag):
    return None
