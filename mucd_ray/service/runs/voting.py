"""Episodes of the voted policy of a run, and what becomes of its certificate by them. Needs the stored policies (of neighbours the data) and the environment, not Ray."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np

from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.file.certificate import make_certificate, standing_assumptions
from mucd_ray.certify.file.evidence import checked_array, checked_reals, checked_wholes
from mucd_ray.certify.file.voted import episode_evidence, rule_of, tree_of, voted_evidence
from mucd_ray.certify.rules import RULES
from mucd_ray.certify.rules.run_off import preferences_of
from mucd_ray.certify.voted_return import Rows, RuleRows, Tree, voted_radii
from mucd_ray.data.environments.make import spec_of
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import clipped_actions, greedy_actions, outputs_of_all
from mucd_ray.evaluate.rollouts import Progress
from mucd_ray.evaluate.search import Episode
from mucd_ray.evaluate.votes import counts
from mucd_ray.files import printable
from mucd_ray.learn.streams import ROLLOUT, Streams
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.progress import bar, stage
from mucd_ray.service.runs.choices import Choices
from mucd_ray.service.runs.settings import RunSettings
from mucd_ray.service.storage.policies import stored_policies
from mucd_ray.service.storage.store import RunStore

# Numbers of episodes begin here among those of instances, whose streams they share.
EPISODES = 1 << 41
# The vote rule that is the plain vote.
PLAIN = "parl"
# Nodes that were followed, and seconds that it took: beside the certificate, which says the same again.
SEARCH = "search.json"
# Of continuous actions, whose return is an estimate for comparison.
MEDIAN_EPISODES = 16
# Outputs of all policies that are computed at a time.
FLOATS_AT_A_TIME = 1 << 18
NOTE = (
    "The voted policy's {episodes} episodes begin with seeds from the run's secret, drawn after the data were fixed. Everything that is random in the environment follows from its seed; every prefix of an episode that "
    "was played again gave the same, bit for bit. How far the trees were followed (at most {nodes} nodes beside the policy's own path) affects how much is claimed, not whether it holds."
)


@dataclass(frozen=True, kw_only=True)
class VotePlan:
    """What is followed, and how far: all that the files of episodes depend on beside the run itself."""

    instances: int
    eta: float
    threat: str
    accountant: str
    radius_cap: int
    episodes: int
    nodes: int
    rule: str | None = None
    window: int | None = None

    @classmethod
    def of(cls, certificate: dict, choices: Choices) -> "VotePlan":
        inputs = certificate["inputs"]
        return cls(
            instances=certificate["results"]["instances"], eta=certificate["results"]["eta"], threat=inputs["threat"], accountant=inputs["accountant"], radius_cap=inputs["radius_cap"],
            episodes=choices.episodes, nodes=choices.nodes, rule=None if choices.rule == PLAIN else choices.rule, window=choices.rule_window,
        )

    def file(self, episode: int) -> str:
        """Where an episode is stored; other plans have other files."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return f"voted/{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}-{episode:06d}.json"

    @property
    def rule_values(self) -> dict | None:
        """As in the certificate."""
        return None if self.rule is None else {"name": self.rule, "window": self.window}


# What decides at observations [n, *shape]: a row int [n, A] for each, in the sense of a `rule_of`; of a vote rule what `RuleRows` takes.
Look = Callable[[np.ndarray], Any]


class Voter:
    """The voted policy of a run: plays its episodes and follows what poisoned votes could make of them.

    Args:
        least: of neighbours, whose run has no policies: the least number of changed units for each action (`sizes_at`).
    """

    def __init__(self, store: RunStore, plan: VotePlan, least: Look | None = None):
        self.store, self.settings, self.plan, self.look = store, store.settings(), plan, least or (self.votes if plan.rule is None else self.ballots)
        self.kind, self.streams = kind_of(store, self.settings, plan), Streams(store.secret())
        if self.kind == "least":
            self.rule, self.radii = rule_of(self.kind, None, threat=plan.threat, instances=0, eta=0.0, steps=0), voted_radii(min(plan.radius_cap, self.settings.mechanism_of(Neighbours).neighbours))
            return
        voters = (store, plan.instances) if self.kind == "votes" else (store.of_parts(), self.settings.mechanism_of(Partition).parts)
        self.policies = stored_policies(voters[0], range(voters[1]))
        widest = max(outputs for _, outputs in self.settings.problem.network.layers)
        self._at_a_time = max(1, FLOATS_AT_A_TIME // (voters[1] * widest))
        if self.settings.actions:
            guarantees = guarantees_of(self.settings.mechanism, units=self.settings.units, threat=plan.threat, family=plan.accountant)
            self.rule = rule_of(self.kind, guarantees, threat=plan.threat, instances=plan.instances, eta=plan.eta, steps=plan.episodes * horizon_of(self.settings), rule=plan.rule)
            self.radii = voted_radii(min(plan.radius_cap, guarantees.largest_radius))

    def seed(self, episode: int) -> int:
        return int(self.streams.generator(EPISODES + episode, 0, ROLLOUT).integers(1 << 31))

    def votes(self, observations: np.ndarray) -> np.ndarray:
        """Votes [n, A] at observations [n, *shape]."""
        return np.concatenate([counts(greedy_actions(outputs), self.settings.actions) for outputs in self._outputs(observations)])

    def ballots(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """What every policy votes at observations [n, *shape], [n, u], and of a scored rule the preferences [n, A, A]."""
        outputs = list(self._outputs(observations))
        votes = np.concatenate([greedy_actions(part).T for part in outputs])
        return votes, np.concatenate([preferences_of(part) for part in outputs]) if RULES[str(self.plan.rule)].scored else None

    def _rows(self) -> Rows | RuleRows:
        if self.plan.rule is None:
            return Rows(self.rule, self.settings.actions)
        mechanism = self.settings.mechanism_of(Partition)
        return RuleRows(RULES[self.plan.rule], actions=self.settings.actions, window=self.plan.window, reached=mechanism.reached(), reach=self.rule.reach)

    def _outputs(self, observations: np.ndarray):
        features = self.settings.card.features(observations)
        for start in range(0, len(features), self._at_a_time):
            yield outputs_of_all(self.policies, features[start : start + self._at_a_time])

    def episode(self, number: int, progress: Progress | None = None) -> dict:
        """Play one and follow it: {"table": rows [K, A], "episode": as in the certificate, "seconds": that it took, "reached": how many steps by radius}, plain values."""
        began, rows = time.perf_counter(), self._rows()
        episode = Episode(self.settings.card, self.seed(number), self.look, rows, progress)
        try:
            episode.play()
            most = len(episode.rows) + self.plan.nodes
            for radius in self.radii:
                if not episode.follow(radius, most):
                    break
            episode.check()
        finally:
            episode.close()
        of_nodes, steps = episode.in_order()
        table, of_nodes = (rows.rows.table, [rows.row(node) for node in of_nodes]) if isinstance(rows, RuleRows) else (rows.table, of_nodes)
        return {"table": table.tolist(), "episode": episode_evidence(Tree(rows=of_nodes, steps=steps)), "seconds": round(time.perf_counter() - began, 3), "reached": episode.reached}

    def median_return(self, progress: Progress | None = None) -> float:
        """Mean return of the median action, dimension by dimension, of continuous policies, in the same episodes."""
        card, returns, environment = self.settings.card, [], self.settings.card.make()
        space = environment.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        for number in range(min(self.plan.episodes, MEDIAN_EPISODES)):
            observation, _ = environment.reset(seed=self.seed(number))
            total, weight, ended = 0.0, 1.0, False
            while not ended:
                (outputs,) = self._outputs(observation[None])
                flat = gymnasium.spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype)
                action = np.median(clipped_actions(flat, outputs[:, 0]), axis=0).astype(space.dtype).reshape(space.shape)
                observation, reward, terminated, truncated, _ = environment.step(action)
                total, weight, ended = total + weight * float(reward), weight * self.settings.discount, terminated or truncated
                if progress is not None:
                    progress()
            returns.append(float(card.clipped(np.array(total))))
        environment.close()
        return float(np.mean(returns))


def are_shared(settings: RunSettings) -> bool:
    """Whether instances are draws among policies of parts that are trained once: those of trainers from outside have randomness of their own, and each instance is trained for itself."""
    return settings.mechanism.kind == Partition.kind and settings.trainer is None


def missing_parts(store: RunStore, settings: RunSettings, size: int = 1 << 10) -> list[range]:
    """Parts of a partition whose shared policies are not stored, in blocks of at most `size`; none where none are shared."""
    return store.of_parts().missing(settings.mechanism_of(Partition).parts, size) if are_shared(settings) else []


def kind_of(store: RunStore, settings: RunSettings, plan: VotePlan | None = None) -> str:
    """Whether the nearest units vote, all parts, by a rule or plainly, or the instances. A partition of an earlier version has no policies of parts stored."""
    if plan is not None and plan.rule is not None:
        return "rule"
    if settings.mechanism.kind == Neighbours.kind:
        return "least"
    return "exact" if are_shared(settings) and not missing_parts(store, settings) else "votes"


def missing_episodes(store: RunStore, plan: VotePlan) -> list[int]:
    return [episode for episode in range(plan.episodes) if not store.storage.exists(plan.file(episode))]


def with_votes(store: RunStore, certificate: dict, choices: Choices, least: Callable[[], Look] | None = None) -> dict:
    """The certificate with what is known of the voted policy; episodes that are not stored yet are played here and now. Writes certificate.json.

    Args:
        least: of neighbours, makes what `Voter` needs; called only where an episode is missing.
    Raises:
        MucdError: missing instances, or an environment that does not repeat itself: nothing else of the run is lost.
    """
    settings, plan = store.settings(), VotePlan.of(certificate, choices)
    inputs, context = certificate["inputs"], dict(certificate["context"])
    own = certificate["assumptions"][len(standing_assumptions(inputs)) :]
    if not settings.actions:
        with stage("voted policy"):
            context["median_action_return"] = Voter(store, plan).median_return()
        voted = None
    else:
        missing = missing_episodes(store, plan)
        if missing:
            # What it may refuse is said before a bar is drawn.
            voter = Voter(store, plan, least and least())
            with bar("voted policy", "episode", len(missing)) as shown:
                for episode in missing:
                    store.write_json(plan.file(episode), voter.episode(episode))
                    shown.update()
        horizon, least_reward = horizon_of(settings), settings.card.reward_range and settings.card.reward_range[0]
        played = [_read(store, plan.file(episode), horizon, least_reward) for episode in range(plan.episodes)]
        voted = voted_evidence(kind_of(store, settings, plan), horizon, least_reward, [file["table"] for file in played], [file["episode"] for file in played], choices.never, plan.rule_values)
        store.write_json(SEARCH, _search(plan, played))
        own.append(NOTE.format(episodes=plan.episodes, nodes=plan.nodes))
    certificate = make_certificate({name: value for name, value in inputs.items() if name != "voted"} | ({} if voted is None else {"voted": voted}), assumptions=own, context=context)
    store.write_json("certificate.json", certificate)
    return certificate


def horizon_of(settings: RunSettings) -> int:
    """The public greatest number of steps of an episode."""
    environment = settings.card.make()
    environment.close()
    limit = spec_of(environment).max_episode_steps
    assert limit is not None  # `make` refuses what has none
    return limit


def _search(plan: VotePlan, played: list[dict]) -> dict:
    """What was followed: nodes, seconds, and steps of every episode at the least, at every radius at which all of them were looked at."""
    steps = [min(found) for found in zip(*(file["reached"] for file in played))]
    return {"nodes": sum(len(file["episode"]["rows"]) for file in played), "seconds": sum(file["seconds"] for file in played), "radius": voted_radii(plan.radius_cap)[: len(steps)], "steps": steps}


def _read(store: RunStore, name: str, horizon: int, least_reward: float | None) -> dict:
    """A stored file, its rows as an array; one of an earlier version does not say how long it took. Raises MucdError, which names it, where it is none."""
    try:
        file = store.read_json(name)
        table = checked_array("table", file["table"], 2)
        rows, actions = table.shape
        tree_of(file["episode"], rows, actions, horizon, least_reward)
        file = {"seconds": 0.0, "reached": []} | file
        checked_reals("seconds", [file["seconds"]])
        checked_wholes("reached", file["reached"])
        return file | {"table": table}
    except (MucdError, LookupError, TypeError, ValueError) as error:
        raise MucdError(f"{store.file(name)} is no episode of the voted policy ({printable(error)}): delete it, and it is played again") from None
