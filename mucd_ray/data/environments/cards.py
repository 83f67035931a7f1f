"""The shipped environment cards, and those of plug-ins."""

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import gymnasium as gym

from mucd_ray import plugins
from mucd_ray.data.environments.card import EnvironmentCard, check_discount, check_of_one, load_card
from mucd_ray.data.environments.frames import SIDE, STACK
from mucd_ray.data.environments.recorded_in import is_alias, name_of, other_version
from mucd_ray.errors import MucdError
from mucd_ray.files import printable
from mucd_ray.plugins import Plugin

__all__ = ["CARDS", "EnvironmentCard", "card_for", "card_named", "check_discount", "known_card", "load_card", "plugged_cards"]


def card_for(
    env_id: str, observation_shape: tuple[int, ...] | None = None, action_space: gym.Space | None = None, make_kwargs: dict | None = None,
    wrapper: str | None = None,
) -> EnvironmentCard:
    """`known_card`, or MucdError: there is none."""
    card, _ = known_card(env_id, observation_shape, action_space, make_kwargs, wrapper)
    if card is None:
        raise MucdError(f"{no_card(env_id)}: write one as JSON (`mucd card ID --out FILE` begins it) and pass it with --card FILE")
    return card


def no_card(env_id: str) -> str:
    """That none is shipped, in words."""
    shipped = ", ".join(dict.fromkeys(card.env_id for card in CARDS))
    same = [f"; the shipped {card.env_id} is made with other arguments" for card in CARDS if card.env_id == env_id]
    others = [f"; the shipped {card.env_id} is another version, with other dynamics or rewards" for card in CARDS if other_version(card.env_id, env_id)]
    version = [*same, *others, ""][0]
    installed = plugins.listed("card")
    return f"no environment card is shipped for {env_id!r} (shipped: {shipped}{version})" + (f"; --card NAME takes one of a plug-in: {', '.join(installed)}" if installed else "")


def card_named(named: str) -> tuple[EnvironmentCard, Plugin | None]:
    """The card of --card: of a JSON file, or of an installed plug-in of this name, which is then the other one.

    Raises:
        MucdError: neither or both of them, or what is there is no card.
    """
    plugin = plugins.find("card", named, {card.env_id for card in CARDS})
    if plugin is None:
        installed = plugins.listed("card")
        if installed and not os.path.lexists(named):
            raise MucdError(f"card {named:.200} is neither a file nor a plug-in: give a JSON file with the fields of an environment card, or one of {', '.join(installed)}")
        return load_card(named), None
    if os.path.lexists(named):
        raise MucdError(f"card {named} is a file here and also the plug-in {plugin}: write ./{named} for the file, or go elsewhere for the plug-in")
    return _card_of(plugin.load(), str(plugin)), plugin


def _card_of(given, name: str) -> EnvironmentCard:
    """That of a plug-in: a JSON file's, a card, or its fields. Raises MucdError."""
    if isinstance(given, Path):
        return load_card(given)
    if type(given) is not EnvironmentCard and not isinstance(given, dict):
        raise MucdError(f"the plug-in {name} is a {type(given).__name__}: it must be an EnvironmentCard, its fields as a dictionary, or a JSON file beside its package, package:name.json")
    try:
        # Neither of a class nor of types of its own: as a run folder will have it.
        values = json.loads(json.dumps(given if isinstance(given, dict) else given.to_dict()))
    except (TypeError, ValueError, RecursionError) as error:
        raise MucdError(f"the plug-in {name} has fields that are no JSON ({printable(error)}): give texts, numbers, lists and dictionaries") from None
    return check_of_one(EnvironmentCard.from_dict(values), f"of the plug-in {name}")


def plugged_cards(env_id: str) -> dict[str, EnvironmentCard]:
    """Cards of plug-ins for an environment, by the names of the plug-ins. Nothing is imported for them: they are JSON files, or in modules that have been imported already. Modules that their ids name are left out, too."""
    cards = {}
    for name, given in plugins.at_hand("card"):
        # Nobody has asked for one that is broken.
        with contextlib.suppress(MucdError):
            card = _card_of(given, name)
            if name_of(card.env_id) == name_of(env_id):
                cards[name] = dataclasses.replace(card, env_id=name_of(env_id))
    return cards


def known_card(
    env_id: str, observation_shape: tuple[int, ...] | None = None, action_space: gym.Space | None = None, make_kwargs: dict | None = None, wrapper: str | None = None,
) -> tuple[EnvironmentCard | None, Plugin | None]:
    """(`shipped_card`, None); where none is shipped, the card of a plug-in for which nothing has to be imported, and the plug-in.

    Raises:
        MucdError: several plug-ins have one that fits.
    """
    shipped = shipped_card(env_id, observation_shape, action_space, make_kwargs, wrapper)
    cards = plugged_cards(env_id) if shipped is None else {}
    if len(cards) > 1:
        cards = {name: card for name, card in cards.items() if _fits(card, observation_shape, action_space, make_kwargs, wrapper)} or cards
    if len(cards) > 1:
        raise MucdError(f"several plug-ins have a card of {name_of(env_id)}: name one with --card, {' or '.join(cards)}")
    for name, card in cards.items():
        return card, plugins.find("card", name)
    return shipped, None


def shipped_card(
    env_id: str, observation_shape: tuple[int, ...] | None = None, action_space: gym.Space | None = None, make_kwargs: dict | None = None,
    wrapper: str | None = None,
) -> EnvironmentCard | None:
    """The shipped card of an environment; where it has several, the first that fits what else is given (or the first of all, if none does).

    Args:
        env_id: Gymnasium id, with or without its module, or another registered id of the same environment and arguments.
        observation_shape, action_space: of the dataset, say.
        make_kwargs, wrapper: the card's.
    """
    cards = [card for card in CARDS if card.env_id == name_of(env_id)] or [card for card in CARDS if is_alias(env_id, card.env_id, card.make_kwargs)]
    if len(cards) <= 1:
        return next(iter(cards), None)

    return next((card for card in cards if _fits(card, observation_shape, action_space, make_kwargs, wrapper)), cards[0])


def _fits(card: EnvironmentCard, observation_shape, action_space, make_kwargs, wrapper) -> bool:
    return (
        (observation_shape is None or tuple(observation_shape) == card.observation_shape)
        and (make_kwargs is None or make_kwargs == card.make_kwargs)
        and (wrapper is None or wrapper == card.wrapper)
        and (action_space is None or action_space == _action_space(card))
    )


def _action_space(card: EnvironmentCard) -> gym.Space:
    environment = card.make()
    environment.close()
    return environment.action_space


_SCALES = (
    "Centers and scales: rounded means and standard deviations over simulator recordings of the shipped behaviour with seed 900000, "
    "which no certified dataset uses."
)
_REFERENCES = "Reference returns: means over {} episodes (seeds from 910000) of uniformly random actions and of the noise-free behaviour."

_LANDER_RETURNS = (
    "Returns: speed, tilt and distance cost points without a bound, so returns are clipped: a landing earns 200 to 320 points, and what falls "
    "below -500 (flying away, or tumbling for long) counts as -500."
)

CARDS: tuple[EnvironmentCard, ...] = (
    EnvironmentCard(
        env_id="CartPole-v1",
        observation_shape=(4,),
        indices=(0, 1, 2, 3),
        center=(0.0, 0.0, 0.0, 0.0),
        scale=(0.16, 0.24, 0.03, 0.3),
        clip=3.0,
        return_range=(0.0, 500.0),
        reward_range=(1.0, 1.0),
        max_episode_steps=500,
        mirror_observation=(-1, -2, -3, -4),
        mirror_actions=(1, 0),
        random_return=22.0,
        expert_return=500.0,
        source=f"{_SCALES} Returns: one point a step, 500 steps at most.",
    ),
    EnvironmentCard(
        env_id="Acrobot-v1",
        observation_shape=(6,),
        # Mirroring the two links turns the sines and velocities, and the torque, into their negatives: the entries that a
        # torque can depend on linearly. The cosines stay as they are and would only take in noise.
        indices=(1, 3, 4, 5),
        center=(0.0, 0.0, 0.0, 0.0),
        scale=(0.55, 0.65, 1.8, 3.0),
        clip=3.0,
        return_range=(-500.0, 0.0),
        reward_range=(-1.0, 0.0),
        max_episode_steps=500,
        mirror_observation=(1, -2, 3, -4, -5, -6),
        mirror_actions=(2, 1, 0),
        random_return=-500.0,
        expert_return=-80.0,
        source=f"Features: the entries that change sign when the system is mirrored. {_SCALES} Returns: minus one point a step, 500 steps at most.",
    ),
    EnvironmentCard(
        env_id="ALE/Freeway-v5",
        make_kwargs={"obs_type": "ram"},
        observation_shape=(128,),
        transform="freeway-clear-steps",
        privileged=True,
        indices=(0, 1, 2),
        center=(5.3, 5.3, 5.3),
        scale=(1.6, 1.6, 1.6),
        clip=3.0,
        return_range=(0.0, 50.0),
        reward_range=(0.0, 1.0),
        max_episode_steps=2048,
        random_return=0.0,
        expert_return=30.0,
        source="Features: steps before a car hits the chicken after NOOP, UP or DOWN, by a public model of the traffic (mucd_ray/data/environments/freeway.py). "
        f"{_SCALES} Returns: a crossing takes at least 42 of an episode's 2048 steps, hence at most 48 points.",
    ),
    EnvironmentCard(
        env_id="Pendulum-v1",
        observation_shape=(3,),
        indices=(0, 1, 2),
        center=(0.0, 0.0, 0.0),
        scale=(0.7, 0.7, 4.0),
        clip=3.0,
        return_range=(-3254.7209, 0.0),
        # -(pi^2 + 0.1 * 8^2 + 0.001 * 2^2), rounded down.
        reward_range=(-16.2736045, 0.0),
        max_episode_steps=200,
        reward_scale=4.0,
        mirror_observation=(1, -2, -3),
        mirror_actions=(-1,),
        random_return=-1217.0,
        expert_return=-141.0,
        source=f"Features: cosine, sine and speed, over half their documented range or so. {_REFERENCES.format(200)} Returns: 200 steps, each costs at most "
        "pi^2 + 0.1 * 8^2 + 0.001 * 2^2 (Gymnasium's documentation).",
    ),
    EnvironmentCard(
        env_id="LunarLander-v3",
        observation_shape=(8,),
        indices=(0, 1, 2, 3, 4, 5, 6, 7),
        center=(0.0, 0.42, 0.0, -0.32, 0.0, 0.0, 0.35, 0.34),
        scale=(0.2, 0.53, 0.32, 0.4, 0.22, 0.18, 0.48, 0.47),
        clip=3.0,
        return_range=(-500.0, 330.0),
        clip_returns=True,
        max_episode_steps=1000,
        reward_scale=5.0,
        mirror_observation=(-1, 2, -3, 4, -5, -6, 8, 7),
        mirror_actions=(0, 3, 2, 1),
        random_return=-192.0,
        expert_return=238.0,
        source=f"{_SCALES} {_REFERENCES.format(200)} {_LANDER_RETURNS}",
    ),
    EnvironmentCard(
        env_id="LunarLander-v3",
        make_kwargs={"continuous": True},
        observation_shape=(8,),
        indices=(0, 1, 2, 3, 4, 5, 6, 7),
        center=(0.0, 0.2, 0.0, -0.15, 0.0, 0.0, 0.59, 0.62),
        scale=(0.14, 0.41, 0.19, 0.29, 0.1, 0.1, 0.49, 0.48),
        clip=3.0,
        return_range=(-500.0, 330.0),
        clip_returns=True,
        max_episode_steps=1000,
        reward_scale=5.0,
        mirror_observation=(-1, 2, -3, 4, -5, -6, 8, 7),
        mirror_actions=(1, -2),
        random_return=-208.0,
        expert_return=280.0,
        source=f"{_SCALES} {_REFERENCES.format(200)} {_LANDER_RETURNS}",
    ),
    EnvironmentCard(
        env_id="InvertedPendulum-v5",
        observation_shape=(4,),
        indices=(0, 1, 2, 3),
        center=(0.0, 0.0, 0.0, 0.0),
        scale=(0.21, 0.027, 0.43, 0.96),
        clip=3.0,
        return_range=(0.0, 1000.0),
        reward_range=(0.0, 1.0),
        max_episode_steps=1000,
        mirror_observation=(-1, -2, -3, -4),
        mirror_actions=(-1,),
        random_return=5.9,
        expert_return=1000.0,
        source=f"{_SCALES} {_REFERENCES.format(100)} Returns: one point a step but the one in which the pole falls, 1000 steps at most.",
    ),
    EnvironmentCard(
        env_id="HalfCheetah-v5",
        observation_shape=(17,),
        transform="halfcheetah-running-components",
        privileged=True,
        indices=(0, 1, 2, 3),
        center=(0.0, 0.0, 0.0, 0.0),
        scale=(1.0, 1.0, 1.0, 1.0),
        clip=3.0,
        return_range=(-500.0, 6000.0),
        clip_returns=True,
        max_episode_steps=1000,
        reward_scale=2.0,
        random_return=-290.0,
        expert_return=3761.0,
        source="Features: principal components, scaled to variance 1, of simulated running by the search that found the behaviour (mucd_ray/data/recording/search.py), which no "
        "certified dataset uses. Reference returns: uniformly random actions (20 episodes) and the noise-free behaviour (12), seeds from 910000. Returns: the environment "
        "declares no bounds, so they are clipped into a range a little wider than what the behaviour earns.",
    ),
    EnvironmentCard(
        env_id="Hopper-v5",
        observation_shape=(11,),
        indices=tuple(range(11)),
        center=(1.33, -0.03, -0.25, -0.24, 0.25, 1.54, -0.05, 0.0, -0.16, -0.02, -0.55),
        scale=(0.17, 0.04, 0.25, 0.17, 0.61, 0.55, 1.4, 0.6, 1.7, 1.8, 5.7),
        clip=3.0,
        return_range=(0.0, 4000.0),
        clip_returns=True,
        max_episode_steps=1000,
        reward_scale=3.0,
        random_return=18.0,
        expert_return=2466.0,
        source=f"{_SCALES} Reference returns: uniformly random actions (400 episodes) and the noise-free behaviour (20), seeds from 910000. Returns: the "
        "environment declares no bounds (a step earns its speed, and 1 for not falling), so they are clipped; Gymnasium registers 3800 as what solves it.",
    ),
    EnvironmentCard(
        env_id="ALE/Breakout-v5",
        make_kwargs={"obs_type": "ram", "max_num_frames_per_episode": 20_000},
        wrapper="breakout-serve",
        observation_shape=(128,),
        transform="breakout-ball-and-paddle",
        privileged=True,
        # The gap, limited, and whether it is wide on either side: what the paddle's next move depends on.
        indices=(1, 2, 3),
        center=(0.0, 0.0, 0.0),
        scale=(7.6, 0.4, 0.4),
        clip=3.0,
        return_range=(0.0, 864.0),
        reward_range=(0.0, 28.0),
        max_episode_steps=5000,
        entries=6,
        learning_rate=0.003,
        random_return=1.5,
        expert_return=87.0,
        source="The environment serves by itself. Features: where the ball will come down, seen from the paddle, by a public reading of the RAM (mucd_ray/data/environments/breakout.py). "
        "Learners on bags: chosen on recordings with seed 101, which no certified dataset uses (docs/results.md). "
        f"{_SCALES} {_REFERENCES.format(40)} An episode ends after 20,000 frames, since one in which nobody plays would last 108,000. Returns: two walls of "
        "108 bricks, 7, 7, 4, 4, 1 and 1 points in the six rows, are 864 points; rewards: at most one brick in each of a step's four frames.",
    ),
    EnvironmentCard(
        env_id="highway-fast-v0",
        observation_shape=(5, 5),
        transform="highway-gaps",
        indices=tuple(range(7)),
        center=(0.24, -0.23, -0.24, -0.066, 0.33, 0.34, 0.0),
        scale=(0.25, 0.55, 0.55, 0.058, 0.052, 0.27, 0.005),
        clip=3.0,
        return_range=(0.0, 30.0),
        reward_range=(0.0, 1.0),
        max_episode_steps=30,
        random_return=9.0,
        expert_return=22.5,
        source="Features: room and speed in the lanes around the vehicle, by a public reading of the observation (mucd_ray/data/environments/highway.py). "
        f"{_SCALES} {_REFERENCES.format(40)} Returns: rewards are normalised into [0, 1], one a second for 30 seconds.",
    ),
)


def _of_frames(card: EnvironmentCard) -> EnvironmentCard:
    """The same game seen as frames: entries / 255, row by row of [4, 42, 42]."""
    return dataclasses.replace(
        card,
        wrapper="atari-frames" if card.wrapper is None else f"{card.wrapper}-frames",
        observation_shape=(STACK, SIDE, SIDE),
        transform=None,
        privileged=False,
        entries=None,
        learning_rate=None,
        indices=(),
        center=(0.0,),
        scale=(255.0,),
        clip=1.0,
        source=f"Features: grey levels / 255 of the last four frames, oldest first (mucd_ray/data/environments/frames.py).{card.source.partition(_SCALES)[2]}",
    )


CARDS += tuple(_of_frames(card) for card in CARDS if card.env_id.startswith("ALE/"))
