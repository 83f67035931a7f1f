"""Episodes of a vote rule's own policy, and what becomes of a run's certificate by them. Needs the stored policies of a partition's parts and the environment, not Ray."""

import contextlib
import json

import numpy as np

from mucd_ray.certify.file.certificate import make_certificate, standing_assumptions
from mucd_ray.certify.file.rules import checked_episode
from mucd_ray.certify.rules import RULES, counts_of
from mucd_ray.certify.rules.run_off import preferences_of
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import greedy_actions, outputs_of_all
from mucd_ray.evaluate.rollouts import Progress
from mucd_ray.evaluate.search import Episode
from mucd_ray.files import MOST_JSON_BYTES, MOST_LISTS, printable
from mucd_ray.mechanism.partition import Partition
from mucd_ray.progress import bar
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.runs.voting import horizon_of, missing_parts
from mucd_ray.service.runs.work import check_returns
from mucd_ray.service.storage.policies import stored_policies
from mucd_ray.service.storage.store import RunStore

# What votes may take of a certificate: the rest of it is smaller.
MOST_BYTES, MOST_ROWS = MOST_JSON_BYTES * 3 // 4, MOST_LISTS * 3 // 4
NOTE = (
    "The vote rule's {episodes} episodes begin with the public seeds 0 to {last}. Everything that is random in the environment follows from its seed: each episode was played again in another environment, and gave the "
    "same, bit for bit."
)


class Ballots:
    """What all policies said at every step of an episode, and what the rule makes of it: the `votes` of an `Episode` whose `look` gives outputs [u, 1, A]."""

    def __init__(self, name: str, window: int | None):
        self.rule, self.steps = RULES[name], window or 1
        self.votes: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []
        self.preferences: list[np.ndarray] = []

    def past(self, step: int | None) -> None:
        """There is one way only, and all of it is here."""

    def add(self, outputs: np.ndarray, pasts=None) -> list[int]:
        votes = greedy_actions(outputs[:, 0])
        self.votes.append(votes)
        self.counts.append(counts_of(votes[None], outputs.shape[2])[0])
        if self.rule.scored:
            self.preferences.append(preferences_of(outputs)[0])
        return [len(self.votes) - 1]

    def choice(self, step: int) -> int:
        return int(self.rule.choose(np.stack(self.counts[max(0, step + 1 - self.steps) : step + 1]), self.preferences[step] if self.rule.scored else None))


class RulePlayer:
    """The policy of a rule, by all parts of a finished run."""

    def __init__(self, store: RunStore, name: str, window: int | None):
        self.settings, self.name, self.window = store.settings(), name, window
        self.policies = stored_policies(store.of_parts(), range(self.settings.mechanism_of(Partition).parts))

    def episode(self, seed: int, progress: Progress | None = None) -> dict:
        """Play it, and once more: as in the certificate. Raises MucdError where it does not repeat itself, or its return is outside the declared range."""
        ballots, card = Ballots(self.name, self.window), self.settings.card
        episode = Episode(card, seed, lambda observations: outputs_of_all(self.policies, card.features(observations)), ballots, progress)
        try:
            episode.play()
        finally:
            episode.close()
        total, weight = 0.0, 1.0
        # On its only path nodes are steps.
        for taken in episode.steps:
            ((reward, _),) = taken.values()
            total, weight = total + weight * reward, weight * self.settings.discount
        earned = card.clipped(np.array([total]))
        check_returns(self.settings, earned)
        found = {"seed": seed, "return": float(earned[0]), "votes": np.stack(ballots.votes).tolist()}
        return found | ({"preferences": np.stack(ballots.preferences).tolist()} if RULES[self.name].scored else {})


def check_rule(store: RunStore, settings: RunSettings, choices: Choices) -> None:
    """Raise MucdError where there are no episodes to be played, before anything is written."""
    if choices.rule is not None and missing_parts(store, settings):
        raise MucdError(f"{store.location} lacks policies of parts, which all vote: run the same `mucd run` again, which trains them")
    check_window(settings, choices)


def check_window(settings: RunSettings, choices: Choices) -> None:
    """Raise MucdError where more steps shall count than an episode has."""
    if choices.rule_window is not None and choices.rule_window > (steps := horizon_of(settings)):
        raise MucdError(f"--window {choices.rule_window} is longer than an episode of {settings.card.env_id}, which has at most {steps} steps: use a shorter one")


def with_rule(store: RunStore, certificate: dict, choices: Choices, into: RunStore | None = None) -> dict:
    """The certificate with what the rule's policy does in its episodes; those that are not stored yet are played here and now. Writes certificate.json, into another folder than the run's if one is given.

    An episode depends on rule, window and seed alone, so that it is played once whatever else is certified.

    Raises:
        MucdError: the environment does not repeat itself, or a certificate cannot hold so many votes: nothing else of the run is lost.
    """
    settings, name, window = store.settings(), choices.rule, choices.rule_window
    assert name is not None
    parts, inputs = settings.mechanism_of(Partition).parts, certificate["inputs"]
    files = [f"rules/{name}{'' if window is None else f'-{window}'}-{seed:06d}.json" for seed in range(choices.episodes)]
    missing = {file for file in files if not store.storage.exists(file)}
    player = RulePlayer(store, name, window) if missing else None
    episodes, size, rows = [], 0, 0
    with bar("vote rule", "episode", len(missing)) if missing else contextlib.nullcontext() as shown:
        for seed, file in enumerate(files):
            if file in missing:
                assert player is not None and shown is not None
                store.write_json(file, player.episode(seed))
                shown.update()
            episodes.append(_read(store, file, name, settings.actions, parts, seed))
            text = json.dumps(episodes[-1])
            size, rows = size + len(text), rows + text.count("[")
            if size > MOST_BYTES or rows > MOST_ROWS:
                fewer = f"certify fewer, --episodes {seed}" if seed else "use fewer parts"
                raise MucdError(f"the votes of {parts} parts in {choices.episodes} episodes are more than a certificate may hold: {fewer}")
    rule = {"name": name, "window": window, "never": choices.never, "actions": settings.actions, "episodes": episodes}
    own = [*certificate["assumptions"][len(standing_assumptions(inputs)) :], NOTE.format(episodes=choices.episodes, last=choices.episodes - 1)]
    certificate = make_certificate(inputs | {"rule": rule}, assumptions=own, context=certificate["context"])
    (into or store).write_json("certificate.json", certificate)
    return certificate


def _read(store: RunStore, file: str, name: str, actions: int, parts: int, seed: int) -> dict:
    """A stored episode. Raises MucdError, which names it, where it is none."""
    try:
        episode = store.read_json(file)
        checked_episode(episode, name, actions, parts)
        if episode["seed"] != seed:
            raise MucdError(f"its seed is {episode['seed']}")
        return episode
    except (MucdError, LookupError, TypeError, ValueError) as error:
        raise MucdError(f"{store.file(file)} is no episode of this vote rule ({printable(error)}): delete it, and it is played again") from None
