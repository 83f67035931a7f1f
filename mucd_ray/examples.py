"""The shipped examples: constants chosen on recordings with other seeds than the recording that is certified."""

import math
from dataclasses import dataclass

from mucd_ray.data.environments.cards import card_for
from mucd_ray.learn.learner import Learner
from mucd_ray.service.runs.session import Request

# The recording that is certified has this seed; every constant below was chosen on recordings with TUNING_SEED.
CERTIFIED_SEED, TUNING_SEED = 2026, 101


@dataclass(frozen=True, kw_only=True)
class PlainExample:
    """An environment and the size of its recording; its run takes what `mucd run` takes without options."""

    env_id: str
    dataset: str
    transitions: int
    instances: int

    def request(self, instances: int) -> Request:
        return Request(dataset=self.dataset, instances=instances)


@dataclass(frozen=True, kw_only=True)
class Example:
    """An environment, the size of its recording, and the constants of its run.

    The noise multiplier follows from the signal budget S = N q sqrt(T) / sigma, with q = batch / N.
    """

    env_id: str
    dataset: str
    transitions: int
    signal_budget: float
    steps: int
    learning_rate: float
    batch: int = 1024
    clip_norm: float = 0.1
    instances: int = 1000

    def request(self, instances: int) -> Request:
        sample_rate = self.batch / self.transitions
        return Request(
            dataset=self.dataset,
            instances=instances,
            card=card_for(self.env_id),
            mechanism="gaussian",
            units=self.transitions,
            sample_rate=sample_rate,
            noise_multiplier=round(self.transitions * sample_rate * math.sqrt(self.steps) / self.signal_budget, 2),
            steps=self.steps,
            clip_norm=self.clip_norm,
            learner=Learner(algorithm="bc", optimiser="sgd", learning_rate=self.learning_rate, average=0.5),
            chosen=f"Mechanism and learner are constants chosen on recordings with seed {TUNING_SEED}; the certified recording has seed {CERTIFIED_SEED}.",
        )


EXAMPLES = {
    "lunarlander": PlainExample(env_id="LunarLander-v3", dataset="lunarlander/demo-v0", transitions=100_000, instances=300),
    "acrobot": Example(
        env_id="Acrobot-v1", dataset="acrobot/mixed-v0", transitions=20_000, signal_budget=90, steps=50, learning_rate=10.0
    ),
    "cartpole": Example(
        env_id="CartPole-v1", dataset="cartpole/mixed-v0", transitions=20_000, signal_budget=110, steps=100, learning_rate=100.0
    ),
    "freeway": Example(
        env_id="ALE/Freeway-v5", dataset="freeway/mixed-v0", transitions=50_000, signal_budget=14, steps=50, learning_rate=10.0
    ),
}
