"""States of environments as bytes: stepped again from them, everything goes as it went before, to the last bit of the state."""

import gymnasium
import numpy as np
import pytest

from mucd_ray.data.environments.make import make_environment
from mucd_ray.evaluate.snapshots import snapshots_of

STICKY = {"obs_type": "ram", "repeat_action_probability": 0.5}


def walked(environment, steps, seed=0):
    """Per step: the state before it, the action, and what it gave, the state after it included."""
    snapshots, actions = snapshots_of(environment), np.random.default_rng(seed)
    observation, _ = snapshots.environment.reset(seed=seed)
    before, found = snapshots.take(), []
    for _ in range(steps):
        action = int(actions.integers(environment.action_space.n))
        observation, reward, terminated, truncated, _ = snapshots.environment.step(action)
        after = snapshots.take()
        found.append((before, action, (np.array(observation).tobytes(), float(reward), terminated, truncated), after))
        if terminated or truncated:
            break
        before = after
    return snapshots, found


@pytest.mark.parametrize(
    "env_id,options,steps",
    [
        ("CartPole-v1", {}, 30), ("Acrobot-v1", {}, 30), ("FrozenLake-v1", {"is_slippery": True}, 30), ("Taxi-v4", {}, 40), ("highway-fast-v0", {}, 6), ("ALE/Freeway-v5", STICKY, 150), ("ALE/Breakout-v5", STICKY, 100),
        ("ALE/Breakout-v5", {"obs_type": "grayscale", "repeat_action_probability": 0.0}, 40), ("ALE/Freeway-v5", {"obs_type": "ram", "frameskip": (2, 5)}, 40),
    ],
    ids=["cartpole", "acrobot", "frozen-lake", "taxi", "highway", "freeway", "breakout", "breakout-frames", "freeway-random-frameskip"],
)  # fmt: skip
def test_a_state_goes_on_as_it_went_before(env_id, options, steps):
    snapshots, found = walked(make_environment(env_id, **options), steps)
    again = []
    for place in np.random.default_rng(1).permutation(len(found)):
        before, action, expected, _ = found[place]
        snapshots.restore(before)
        observation, reward, terminated, truncated, _ = snapshots.environment.step(action)
        assert (np.array(observation).tobytes(), float(reward), terminated, truncated) == expected
        again.append((place, snapshots.take()))
    # What was restored and stepped once is the same state as what was restored and stepped once, whatever came between.
    for place, after in again:
        snapshots.restore(found[place][0])
        snapshots.environment.step(found[place][1])
        assert snapshots.take() == after
    snapshots.environment.close()


def test_an_emulators_state_without_the_action_that_may_be_repeated_goes_on_in_another_way():
    """Why `Emulator` follows it."""
    environment = make_environment("ALE/Freeway-v5", **STICKY)
    snapshots, found = walked(environment, 60)
    differ = 0
    for before, action, expected, _ in found:
        for repeated in snapshots.environment.unwrapped._action_set:
            snapshots.restore(before)
            state, _ = snapshots.emulator.state()
            snapshots.emulator.restore(state, repeated)
            differ += np.array(snapshots.environment.step(action)[0]).tobytes() != expected[0]
    environment.close()
    assert differ


class Toll(gymnasium.Wrapper):
    """Of somebody else: it may keep its state anywhere."""


def test_only_environments_that_are_known_to_hold_their_state_are_kept():
    assert snapshots_of(Toll(make_environment("CartPole-v1"))) is None and snapshots_of(make_environment("LunarLander-v3")) is None
    assert snapshots_of(make_environment("ALE/Freeway-v5", repeat_action_probability=0.95)) is None
