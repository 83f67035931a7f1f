"""The certified instances of a finished run as one policy that answers new observations, without Ray."""

import functools

import gymnasium
import numpy as np

from mucd_ray.certify.action import certify_exact, certify_scores, certify_votes
from mucd_ray.certify.closed_form import guarantees_of
from mucd_ray.certify.components import certifiable
from mucd_ray.certify.file.claim import CONDITIONS
from mucd_ray.certify.file.evidence import LEVELS, VOTES, histogram, levels
from mucd_ray.certify.file.results import TOLERANCES
from mucd_ray.certify.median_action import MedianActions
from mucd_ray.certify.rounding import confidence_percent, percent_up
from mucd_ray.certify.tabulated import TabulatedGuarantees, tabulated
from mucd_ray.data.environments.features import load_features_of, may_see
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import clipped_actions, greedy_actions, outputs_of_all, softmax_probabilities
from mucd_ray.evaluate.votes import counts
from mucd_ray.files import as_expected, printable
from mucd_ray.learn.encoders import load_encoder
from mucd_ray.mechanism.components import best, blocks
from mucd_ray.mechanism.neighbours import Neighbours
from mucd_ray.mechanism.partition import Partition
from mucd_ray.mechanism.units import UNITS
from mucd_ray.service.storage.policies import stored_policies
from mucd_ray.service.storage.store import RunStore

# Outputs of all policies that are computed at a time: more leave the processor's cache.
FLOATS_AT_A_TIME = 1 << 18
# Radii that are kept, by the two largest counts of votes.
MOST_RADII = 1 << 20
# More votes than these that come out otherwise than in the certificate are no matter of rounding.
DIFFERING_VOTES = 0.01

CONFIDENCE = (
    "{lead}The radius holds with probability at least {level} for each state that was chosen without looking at anything these instances produced. States reached by "
    "following their actions, or found by probing their answers, are chosen by the instances: for them the radius has no such confidence, neither singly "
    "nor together, and fixing their number in advance does not change that."
)
CERTAIN = "Certain: all parts of the data have voted, and none of it is a sample. The radius holds at every state, however it was chosen."


class Ensemble:
    """Instances 0..P-1 of a run's certificate, and the certificate's choices: eta, looks, threat, accountant, inference.

    Attributes:
        kind: "votes", "exact" (votes of all parts of a partition), "scores" or "continuous".
        voters: how many policies vote.
        certificate: as it stands in the run folder.

    `encoder`: SHA-256 of the encoder that the user vouches for, where the run has one: the run folder's own is loaded if it is that one. `features`: name of the plug-in in its place.

    Raises:
        MucdError: features or an encoder that nobody vouches for; no certificate, one that certifies no actions or is of other instances than the stored ones, or missing instances.
    """

    def __init__(self, run: str, encoder: str | None = None, features: str | None = None):
        store = RunStore.open(run)
        certificate, self.settings = store.certificate(), store.settings()
        if may_see(run, self.settings.card, features):
            load_features_of(self.settings.card)
        elif self.settings.card.encoder is not None:
            if encoder != self.settings.card.encoder[0]:
                raise MucdError(f"policies of {run} see observations through an encoder, which is run only on your word: give its SHA-256, or with `mucd serve` its file")
            load_encoder(store.encoder(), self.settings.card.observation_shape)
        if self.settings.mechanism.kind == Neighbours.kind:
            raise MucdError(f"{run} is a run of neighbours, whose policy is the data itself: nothing of it is stored that could be served")
        if certificate is None:
            raise MucdError(f"{run} has no certificate.json: make it with `mucd certify {run}`")
        self.certificate = certificate
        with as_expected(store.file("certificate.json"), f"make it again with `mucd certify {run}`"):
            results = self.certificate["results"]
            if results["action"] is None:
                raise MucdError(f"the certificate of {run} certifies no actions, since they are unbounded: there is no action to serve")
            self.kind, self.instances, self.eta = results["action"]["kind"], results["instances"], results["eta"]
            if type(self.instances) is not int or self.instances < 1:
                raise ValueError(f"{self.instances!r} instances")
        self.states = store.fixed_states()
        with as_expected(store.file("blocks"), "its parameters are not of these settings; start a new run folder"):
            self.voters = self.settings.mechanism_of(Partition).parts if self.kind == "exact" else self.instances
            self.policies = stored_policies(store.of_parts() if self.kind == "exact" else store, range(self.voters))
        self.outputs, self.components = self.settings.columns, self.settings.components or ()
        widest = max(outputs for _, outputs in self.settings.problem.network.layers)
        self._rows = max(1, FLOATS_AT_A_TIME // (self.voters * widest))
        self._radii: dict[tuple[int, ...], int] = {}
        with as_expected(store.file("certificate.json"), f"make it again with `mucd certify {run}`"):
            self._check_votes(run)
            self.about()

    @property
    def confidence(self) -> str:
        """What the certificate's probability means for answers; part of every one of them."""
        lead = "" if self.certificate["results"]["sound"] else "NOT SOUND: made with the published accounting rule, for comparison only. "
        if self.certificate["inputs"]["condition"]:
            lead += f"CONDITIONAL: {CONDITIONS[self.certificate['inputs']['condition']]}. "
        if self.kind == "exact":
            return lead + CERTAIN
        return CONFIDENCE.format(lead=lead, level=f"{confidence_percent(self.eta)} %")

    def about(self) -> dict:
        """What is served."""
        inputs = self.certificate["inputs"]
        return {
            "run": self.certificate["context"]["dataset"]["name"],
            "environment": self.settings.card.env_id,
            "instances": self.instances,
            "kind": self.kind,
            "threat": inputs["threat"],
            "unit": UNITS[inputs["mechanism"]["unit"]],
            "accountant": inputs["accountant"],
            "sound": self.certificate["results"]["sound"],
            "eta": self.eta,
            "certificate": self.certificate["sha256"],
            "claim": self.certificate["claim"],
            "assumptions": self.certificate["assumptions"],
            "confidence": self.confidence,
        }

    def warm_up(self) -> None:
        """All accounting, in advance: seconds to a minute, which the first answers take otherwise; later ones take milliseconds."""
        self.answers(self.states)

    @functools.cached_property
    def _guarantees(self):
        """Tables of what follows from votes, levels or medians, of components one for each number of values. The radii of the certificate are among them. Exact votes need none."""
        if self.kind == "exact":
            return guarantees_of(self.settings.mechanism, units=self.settings.units, threat=self.certificate["inputs"]["threat"])
        inputs, part = self.certificate["inputs"], self.certificate["results"]["action"]["per_state"]
        own = [part["radius"]] if self.kind != "continuous" else [entry["radius"] for entry in part["tolerance"].values()]
        guarantees = guarantees_of(self.settings.mechanism, units=self.settings.units, threat=inputs["threat"], family=inputs["accountant"])
        return functools.cache(lambda outputs: tabulated(
            guarantees, self.kind, instances=self.instances, outputs=outputs, eta=self.eta / max(len(self.components), 1), cap=self._cap,
            radii=[radius for radii in own for radius in radii if radius is not None],
        ))

    def answers(self, observations: np.ndarray) -> list[dict]:
        """One answer per observation [S, *observation_shape], as plain JSON values; a radius is None where not even r = 0 is certified.

        Where actions are numbers of combinations, or flattened, "environment_action" is the action as the environment takes it.

        Raises:
            MucdError: no observations, or what is no finite number in them.
        """
        answers, actions = self._answers(self.evidence(observations)), self.settings.environment_actions
        return answers if actions is None else [answer | {"environment_action": actions.original(answer["action"]).tolist()} for answer in answers]

    def _answers(self, evidence: np.ndarray) -> list[dict]:
        if self.kind == "continuous":
            return self._intervals(evidence)
        shown = evidence if self.kind in VOTES else evidence @ np.arange(LEVELS + 1) / (LEVELS * self.instances)
        radius = np.min([self._radii_of(part) for part in (map(certifiable, blocks(evidence, self.components, 1)) if self.components else [evidence])], axis=0)
        told = [[part.tolist() for part in blocks(row, self.components)] for row in shown] if self.components else shown.tolist()
        return [
            {"action": action, "radius": None if r < 0 else r, "votes" if self.kind in VOTES else self.kind: row}
            for action, r, row in zip(self._actions(evidence).tolist(), radius.tolist(), told, strict=True)
        ]

    def _actions(self, evidence: np.ndarray) -> np.ndarray:
        """Of discrete ones, as they are numbered: int64 [S], or [S, k] of several components."""
        return best(evidence if self.kind in VOTES else evidence @ np.arange(LEVELS + 1), self.components) + self.settings.first_action

    def _radii_of(self, evidence: np.ndarray) -> np.ndarray:
        """Radii int64 [S] of the actions of which this is the evidence [S, A, ...], or of a component's values; -1 where not even r = 0 is certified."""
        eta = self.eta / max(len(self.components), 1)
        if self.kind == "exact":
            return certify_exact(evidence, self._guarantees, eta=eta, cap=self._cap).radius
        guarantees = self._guarantees(evidence.shape[1])
        return self._vote_radii(evidence, guarantees, eta) if self.kind == "votes" else certify_scores(evidence, guarantees, eta=eta, cap=self._cap).radius

    def act(self, observations: np.ndarray) -> np.ndarray:
        """The voted (for continuous actions: the median) action at each of S observations, or at a single one, as the environment takes it.

        Args:
            observations: [S, *observation_shape] -> int64 [S], int64 [S, k] of several components or float64 [S, d]; or [*observation_shape] -> an int64 number, int64 [k] or float64 [d]. Where the environment's action space is MultiDiscrete,
                MultiBinary or a Box of another shape, actions are in that shape and dtype. One observation in a Dict space may be given as the dictionary that it is.
        Raises:
            MucdError: no observations, or what is no finite number in them.
        """
        observations, one = self._rows_of(observations)
        evidence = self.evidence(observations)
        if self.kind == "continuous":
            low, high = self.settings.action_limits
            actions = low + (high - low) * MedianActions(evidence, self._guarantees(self.outputs), eta=self.eta).median()
        else:
            actions = self._actions(evidence)
        if self.settings.environment_actions is not None:
            actions = np.stack([self.settings.environment_actions.original(action) for action in actions])
        return actions[0] if one else actions

    def radius(self, observations: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
        """The certified radius of that action at each of S observations [S, *observation_shape], or at a single one: int64 [S], or a number; -1 where not even r = 0 is certified.

        Args:
            tolerance: of continuous actions, one of 0.05, 0.1 and 0.25: half the width, as a share of the action range, of the interval in which the action stays.
        Raises:
            MucdError: another tolerance, no observations, or what is no finite number in them.
        """
        if not isinstance(tolerance, float) or tolerance not in TOLERANCES:
            raise MucdError(f"tolerance {tolerance!r:.60} is not certified: use one of {', '.join(map(str, TOLERANCES))}")
        observations, one = self._rows_of(observations)
        answers = self.answers(observations)
        if self.kind == "continuous":
            answers = [next(entry for entry in answer["tolerances"] if entry["tolerance"] == tolerance) for answer in answers]
        radii = np.array([-1 if answer["radius"] is None else answer["radius"] for answer in answers], np.int64)
        return radii[0] if one else radii

    def _rows_of(self, observations: np.ndarray) -> tuple[np.ndarray, bool]:
        if isinstance(observations, dict) and self.settings.environment_observations is not None:
            return self.settings.environment_observations.one(observations)[None], True
        observations = _numbers(observations)
        one = observations.shape == tuple(self.settings.card.observation_shape)
        return (observations[None] if one else observations), one

    def evidence(self, observations: np.ndarray) -> np.ndarray:
        """What the instances do at S observations, as in the certificate: votes [S, A], or a histogram of levels [S, A or d, LEVELS + 1].

        Raises:
            MucdError: no observations, or what is no finite number in them.
        """
        observations, shape = _numbers(observations), tuple(self.settings.card.observation_shape)
        if observations.shape[1:] != shape or observations.ndim != len(shape) + 1 or not len(observations):
            raise MucdError(f"observations of shape {observations.shape} must be a list of at least one, each of shape {shape}")
        if not np.isfinite(observations).all():
            raise MucdError("an observation holds finite numbers only: here is NaN or infinity")
        features = self.settings.card.features(observations)
        return np.concatenate([self._evidence(features[start : start + self._rows]) for start in range(0, len(features), self._rows)])

    def _evidence(self, features: np.ndarray) -> np.ndarray:
        outputs = outputs_of_all(self.policies, features)
        if self.kind in VOTES:
            return counts(greedy_actions(outputs, self.components), self.settings.actions, self.components)
        if self.kind == "scores":
            return histogram(levels(softmax_probabilities(outputs, self.components), 0.0, 1.0))
        low, high = self.settings.action_limits
        return histogram(levels(clipped_actions(gymnasium.spaces.Box(low, high, dtype=np.float64), outputs), low, high))

    def _vote_radii(self, votes: np.ndarray, guarantees: TabulatedGuarantees, eta: float) -> np.ndarray:
        """Radii of votes [S, A]. They depend on the two largest counts and on A alone, and are kept by them."""
        keys = [(votes.shape[1], *row) for row in np.sort(votes, axis=1)[:, -2:].tolist()]
        if len(self._radii) > MOST_RADII:
            self._radii = {}
        new = {key: row for row, key in enumerate(keys) if key not in self._radii}
        if new:
            found = certify_votes(votes[list(new.values())], guarantees, eta=eta, cap=self._cap)
            self._radii |= dict(zip(new, found.radius.tolist(), strict=True))
        return np.array([self._radii[key] for key in keys])

    def _intervals(self, evidence: np.ndarray) -> list[dict]:
        low, high = self.settings.action_limits
        medians = MedianActions(evidence, self._guarantees(self.outputs), eta=self.eta)
        answers = [{"action": action, "tolerances": []} for action in (low + (high - low) * medians.median()).tolist()]
        for tolerance in TOLERANCES:
            radii = medians.radii(tolerance, self._cap)
            for radius in np.unique(radii).tolist():
                ends = [(low + (high - low) * end).tolist() for end in medians.interval(max(radius, 0))]
                for row in np.flatnonzero(radii == radius).tolist():
                    certified = {"radius": None, "low": None, "high": None} if radius < 0 else {"radius": radius, "low": ends[0][row], "high": ends[1][row]}
                    answers[row]["tolerances"].append({"tolerance": tolerance} | certified)
        return answers

    @property
    def _cap(self) -> int:
        return self.certificate["inputs"]["radius_cap"]

    def _check_votes(self, run: str) -> None:
        """The stored instances must do at the run's own states what the certificate counts."""
        actions = self.certificate["inputs"]["actions"]
        certified, found = np.array(actions["counts" if self.kind in VOTES else "histogram"]), self.evidence(self.states)
        differing = 1.0 if certified.shape != found.shape else np.abs(certified - found).sum() / (2 * certified.sum())
        if differing > DIFFERING_VOTES:
            raise MucdError(
                f"at the run's own states {percent_up(differing)} % of what the stored instances do is not what the certificate of {run} counts: "
                "serve it with the version of the package that made it, or certify again"
            )


def _numbers(observations) -> np.ndarray:
    """As an array of real numbers. Raises MucdError."""
    try:
        array = np.asarray(observations)
        if array.dtype.kind not in "fiub":
            raise ValueError(f"they would be of dtype {array.dtype}")
    except Exception as error:  # an object of the user's may raise anything
        raise MucdError(f"observations are no array of real numbers ({printable(error)}): give one, or lists of the same length in each other") from None
    return array
