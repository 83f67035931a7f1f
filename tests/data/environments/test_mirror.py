"""A declared mirror is one: an episode and its image, played in the real environment, stay images of each other."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from mucd_ray.data.environments.cards import CARDS
from mucd_ray.data.environments.mirror import Mirror
from mucd_ray.errors import MucdError

MIRRORED = [card for card in CARDS if card.mirror is not None]


class WithoutChance(np.random.Generator):
    """LunarLander's terrain, first push and thrusters without their randomness, which is symmetric but differs from image to image."""

    def uniform(self, low=0.0, high=1.0, size=None):
        middle = (low + high) / 2
        return middle if size is None else np.full(size, middle)


def twins(card):
    """Two fresh environments, the second one in the mirror image of the first one's state; and the first observation."""
    first, second = card.make(), card.make()
    observation, _ = first.reset(seed=3)
    second.reset(seed=4)
    of_first, of_second = first.unwrapped, second.unwrapped
    if card.env_id.startswith("LunarLander"):
        for environment in (of_first, of_second):
            environment.np_random = WithoutChance(np.random.PCG64(0))
            # The push that starts an episode is drawn anew; a sideways one, with the sign of its place.
            environment.reset()
            environment.lander.ApplyForceToCenter((40.0 if environment is of_first else -40.0, 0.0), True)
        observation = of_first.step(np.zeros(2, np.float32) if card.make_kwargs.get("continuous") else 0)[0]
        of_second.step(np.zeros(2, np.float32) if card.make_kwargs.get("continuous") else 0)
    elif card.env_id.startswith("InvertedPendulum"):
        of_second.set_state(-of_first.data.qpos, -of_first.data.qvel)
    else:
        of_second.state = -np.array(of_first.state)
    return first, second, observation


def image_of(card, action):
    return card.mirror.images_of_actions(np.array([action]))[0]


@pytest.mark.parametrize("card", MIRRORED, ids=lambda card: f"{card.env_id}-{len(card.make_kwargs)}")
def test_an_episode_and_its_image_stay_images(card):
    first, second, observation = twins(card)
    # Contacts of LunarLander are solved in an order that the image does not share; InvertedPendulum's pole leans by a thousandth.
    steps, tolerance = {"LunarLander-v3": (60, 2e-3), "InvertedPendulum-v5": (10, 2e-2)}.get(card.env_id, (40, 1e-5))
    rng, moved = np.random.default_rng(0), 0.0
    for _ in range(steps):
        action = rng.integers(first.action_space.n) if isinstance(first.action_space, gym.spaces.Discrete) else rng.uniform(first.action_space.low, first.action_space.high).astype(np.float32)
        observation, reward, terminated, truncated, _ = first.step(action)
        image, of_image, ended, _, _ = second.step(image_of(card, action))
        np.testing.assert_allclose(image, card.mirror.observations(observation), atol=tolerance)
        assert (abs(reward - of_image) < 100 * tolerance) and ended == terminated
        moved = max(moved, np.abs(observation - card.mirror.observations(observation)).max())
        if terminated or truncated:
            break
    # It was no episode that is its own image.
    assert moved > 0.1


def test_images_are_undone_by_themselves():
    for card in MIRRORED:
        rng = np.random.default_rng(1)
        observations = rng.standard_normal((5, len(card.mirror.observation))).astype(np.float32)
        assert np.array_equal(card.mirror.observations(card.mirror.observations(observations)), observations)
        actions = np.arange(len(card.mirror.actions)) if card.mirror.of_discrete else rng.standard_normal((5, len(card.mirror.actions)))
        assert np.array_equal(card.mirror.images_of_actions(card.mirror.images_of_actions(actions)), actions)


@pytest.mark.parametrize("observation,actions", [((1, 1), (0, 1)), ((0, 1), (0, 1)), ((1, 3), (0, 1)), ((-2, 1), (1,)), ((1.0, 2.0), (0,)), ((1, 2), (1, 2, 0)), ((1, 2), (0, -1)), ((1,), (2, -1))])
def test_what_is_no_mirror_is_refused(observation, actions):
    with pytest.raises(MucdError, match="mirror of"):
        Mirror(observation=observation, actions=actions)


def test_a_mirror_that_does_not_fit_is_refused():
    mirror = Mirror(observation=(-1, 2), actions=(-1,))
    mirror.check(width=2, actions=1, discrete=False, bounds=((-2.0,), (2.0,)))
    for wrong in ({"width": 3}, {"actions": 2}, {"discrete": True}, {"bounds": ((-1.0,), (2.0,))}):
        with pytest.raises(MucdError, match="correct the card"):
            mirror.check(**{"width": 2, "actions": 1, "discrete": False, "bounds": None} | wrong)
    with pytest.raises(MucdError, match="bytes"):
        mirror.observations(np.zeros((1, 2), np.uint8))
    for wrong in ({"mirror_actions": ()}, {"mirror_observation": (-1, 2)}):
        with pytest.raises(MucdError, match="mirror_observation"):
            dataclasses.replace(MIRRORED[0], **wrong)
