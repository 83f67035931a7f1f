"""Scores of policies by an evaluator of the user's, in the place of returns: every score in a process of its own (learn/trainers/nursery.py).

A score that is none, outside the public range, or does not come in time counts as the least, whatever the policy did to bring that about: it is counted, and never asked for again.
"""

import json
import math
import struct
import tempfile
import time
from collections.abc import Callable

import gymnasium
import numpy as np
from minari.serialization import serialize_space

from mucd_ray.data.environments.card import EnvironmentCard
from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import Policies, environment_actions
from mucd_ray.evaluate.rollouts import means
from mucd_ray.files import printable
from mucd_ray.learn.scores import width_of
from mucd_ray.learn.trainers import outside
from mucd_ray.learn.trainers.nursery import MOST_QUESTION, frame
from mucd_ray.learn.trainers.outside import Line, NurseryProcess, asked
from mucd_ray.mechanism.evaluator import Evaluator

# Why a score counts as the least, in the order of its number in a run folder; 0 is a score.
CAUSES = ("", "raised", "no number", "outside the range", "died", "too slow", "too much memory")
RAISED, NO_NUMBER, OUTSIDE, DIED, SLOW, MEMORY = range(1, 7)
OF_LINE = {outside.DIED: DIED, outside.SLOW: SLOW, outside.MEMORY: MEMORY}


def evaluator(name: str, low: float, high: float, **limits) -> Evaluator:
    """An evaluator with the hash of its file, which nobody has imported yet. Raises MucdError where there is no such file or module."""
    return Evaluator(name=name, sha256=outside.sha256_of("evaluator", name), low=low, high=high, **limits)


class Scorer:
    """Asks for scores, one at a time; to be closed.

    Args:
        spaces: of observations and actions, as policies see and take them.
        progress: called again and again while anything lasts.

    Attributes:
        words: by cause, of the first score that failed so, in the evaluator's own.

    Raises:
        MucdError: it cannot be imported, does not take (policy, seed), or its file is not the one with which the run began.
    """

    def __init__(self, evaluator: Evaluator, spaces: tuple[gymnasium.Space, gymnasium.Space], progress: Callable[[], None] | None = None):
        self.evaluator, self.spaces, self.progress = evaluator, spaces, progress
        self.words: dict[str, str] = {}
        self._header = dict(zip(("observation_space", "action_space"), map(serialize_space, spaces)))
        self._process = self._start()

    def _start(self) -> NurseryProcess:
        process = NurseryProcess("evaluator", self.evaluator.name, progress=self.progress)
        if process.sha256 != self.evaluator.sha256:
            process.close()
            raise MucdError(f"the file of evaluator {self.evaluator.name} is not the one with which the run began, or not the same on every node: restore it, or start a new run folder")
        return process

    def try_out(self) -> None:
        """Raise MucdError unless it gives the policy of the default action a score in its range."""
        _, failed = self.scores(_Default(self.spaces[1]), None, np.zeros((1, 1), int))
        if failed[0]:
            raise MucdError(f"--evaluator {self.evaluator.name} gives the policy that always takes the default action no score in [{self.evaluator.low:g}, {self.evaluator.high:g}]: {self.words[CAUSES[failed[0]]]}")

    def scores(self, policies: Policies, card: EnvironmentCard | None, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(score of each policy, float64 [P], the mean over its seeds [P, m]; why the first of them that failed did, a number of CAUSES, uint8 [P])."""
        scores, failed = np.empty(seeds.shape), np.zeros(len(seeds), np.uint8)
        for policy, number in np.ndindex(seeds.shape):
            value, cause, words = self._asked(policies, card, policy, int(seeds[policy, number]))
            scores[policy, number] = value
            if cause:
                failed[policy] = failed[policy] or cause
                self.words.setdefault(CAUSES[cause], CAUSES[cause] + (f" ({printable(words)})" if words else ""))
        return means(scores, seeds.shape), failed

    def _asked(self, policies: Policies, card: EnvironmentCard | None, policy: int, seed: int) -> tuple[float, int, str]:
        """(score, cause, words)."""
        if self._process.process.poll() is not None:
            # The last one has killed it.
            self._process.close()
            self._process = self._start()
        with tempfile.TemporaryDirectory(prefix="mucd-evaluator-", ignore_cleanup_errors=True) as folder:
            line, deadline = asked(self._process, self.evaluator.memory, folder), time.monotonic() + self.evaluator.seconds
            try:
                answer = self._ask(line, frame({"seed": seed} | self._header), deadline)
                while not isinstance(answer, int) and "shape" in answer[0]:
                    observations = self._observations(*answer)
                    if observations is None:
                        return self.evaluator.low, NO_NUMBER, "it asks what no policy can answer"
                    answer = self._ask(line, self._acted(policies, card, policy, observations), deadline)
                return self._read(answer, line)
            finally:
                line.close()

    def _ask(self, line: Line, request: bytes, deadline: float):
        return line.ask(request, MOST_QUESTION, deadline, self.progress)

    def _observations(self, header: dict, body: bytes) -> np.ndarray | None:
        """Those about which the policy is asked, [n, *shape]; None where they are none."""
        try:
            kind = np.dtype(str(header["dtype"]))
            observations = np.frombuffer(body, kind).reshape([int(length) for length in header["shape"]]) if kind.kind in "fiub" else np.zeros(0)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return observations if observations.shape[1:] == self.spaces[0].shape else None

    def _acted(self, policies: Policies, card: EnvironmentCard | None, policy: int, observations: np.ndarray) -> bytes:
        features = observations if card is None else card.features(observations)
        actions = environment_actions(self.spaces[1], policies.outputs(features, np.array([policy])))
        return frame({}, np.ascontiguousarray(actions).tobytes())

    def _read(self, answer: tuple[dict, bytes] | int, line: Line) -> tuple[float, int, str]:
        low, high = self.evaluator.low, self.evaluator.high
        if isinstance(answer, int):
            ended: dict = line.ended or {}
            return low, OF_LINE.get(answer, NO_NUMBER), f"signal {ended['signal']}" if "signal" in ended else ""
        if answer[0].get("error") is not None:
            return low, RAISED, str(answer[0]["error"])
        score = struct.unpack("!d", answer[1])[0] if len(answer[1]) == 8 else math.nan
        if math.isnan(score):
            return low, NO_NUMBER, ""
        return (score, 0, "") if low <= score <= high else (low, OUTSIDE, json.dumps(score))

    def close(self) -> None:
        self._process.close()


class _Default:
    """The policy of the default action."""

    def __init__(self, action_space: gymnasium.Space):
        self.width = width_of(action_space)

    def __len__(self) -> int:
        return 1

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        return np.full((len(features), self.width), np.nan)
