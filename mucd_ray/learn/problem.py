"""What is learned: a learner on the features and actions of one environment, with the shapes of all its networks."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import gymnasium
import numpy as np
from torch import nn

from mucd_ray.data.environments.mirror import Mirror
from mucd_ray.data.environments.past import ACTION
from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithm import Algorithm, Tower
from mucd_ray.learn.algorithms import algorithm_for
from mucd_ray.learn.convolutional import FRAMES, convolutional, image_shape
from mucd_ray.learn.decision_transformer import decision_transformer
from mucd_ray.learn.learner import Learner
from mucd_ray.learn.networks import Network, RandomFeatures
from mucd_ray.learn.scores import width_of
from mucd_ray.learn.transformer import transformer


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Public shapes of one run.

    Attributes:
        learner: the algorithm and how its parameters move.
        inputs: width of an observation's features.
        actions: number of discrete actions, or of continuous dimensions.
        discrete: which of both.
        components: of discrete actions of several components how many values each may have; then `actions` is how many these are in all.
        action_bounds: public (low [k], high [k]) of continuous actions; the learner sees them scaled to [-1, 1]. None if unbounded.
        mirror: a public symmetry of observations and actions, for learners that are shown both (`Fit.mirrored`).
        shape: of an image whose flattened entries the features are; read by convolutional networks.
        history: how many observations or recalled steps, oldest first, the features are made of; read by transformers.

    Raises:
        MucdError: the algorithm does not fit the actions, or one of its constants is unknown, outside its range or missing.
    """

    learner: Learner
    inputs: int
    actions: int
    discrete: bool
    action_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    shape: tuple[int, ...] = FRAMES
    history: int = 1
    mirror: Mirror | None = None
    components: tuple[int, ...] = ()
    # Numbers that networks are told while they learn, beside the features.
    told: ClassVar[int] = 0

    def __post_init__(self):
        missing = [name for name in self.algorithm.constants if name not in self.constants]
        if missing:
            raise MucdError(f"algorithm {self.learner.algorithm!r} needs the constant {missing[0]}: {self.algorithm.constants[missing[0]].meaning}")
        takes_actions = any(tower.takes_action for tower, _ in self.networks)
        if self.learner.network != "dense" and len(self.networks) > 1:
            raise MucdError(f"algorithm {self.learner.algorithm!r} has several networks here: a {self.learner.network} one needs an algorithm of a single one, such as bc or dqn")
        if self.learner.network == "convolutional":
            if self.algorithm.conditioned:
                raise MucdError(f"algorithm {self.learner.algorithm!r} is told a return, which a convolutional network has no place for: use bc, or a dense network")
            image_shape(self.shape)
            if self.inputs != math.prod(self.shape):
                raise MucdError(f"a convolutional network wants images, here of shape {self.shape}; these observations have {self.inputs} features: record with --frames")
        if self.algorithm.recalls and (self.inputs % self.history or self.inputs // self.history <= ACTION + self.actions):
            raise MucdError(f"algorithm {self.learner.algorithm!r} sees {self.history} steps of an episode with {self.actions} numbers of an action each, {self.inputs} features are none: use a card with_past")
        if self.mirror is not None and self.components:
            raise MucdError("a mirror knows no actions of several components: leave mirrored trajectories out (--no-mirrored)")
        if self.mirror is not None:
            self.mirror.check(width=self.inputs, actions=self.actions, discrete=self.discrete, bounds=self.action_bounds)
        if takes_actions and self.action_bounds is None:
            raise MucdError(f"algorithm {self.learner.algorithm!r} needs an action space with finite bounds: use bc where there are none")

    @functools.cached_property
    def algorithm(self) -> Algorithm:
        return algorithm_for(self.learner.algorithm, self.discrete, self.components)

    @functools.cached_property
    def constants(self) -> dict[str, float]:
        return self.algorithm.filled(self.learner.constants)

    @functools.cached_property
    def embedding(self) -> RandomFeatures | None:
        """The public map from features to what networks take, or None."""
        learner = self.learner
        return RandomFeatures(inputs=self.inputs, count=learner.random_features, bandwidth=learner.bandwidth) if learner.random_features else None

    @functools.cached_property
    def networks(self) -> tuple[tuple[Tower, Network], ...]:
        """Every tower and its network, in the order of their parameters."""
        width = (self.learner.random_features or self.inputs) + self.told
        return tuple(
            (tower, Network(inputs=width + self.actions * tower.takes_action, outputs=tower.outputs, hidden=self.learner.hidden))
            for tower in self.algorithm.towers(self.actions, self.constants)
        )

    @property
    def network(self) -> Network:
        """That of the tower that acts."""
        return next(network for tower, network in self.networks if tower.name == self.algorithm.policy)

    @functools.cached_property
    def module_factory(self) -> Callable[[np.random.Generator], nn.Module] | None:
        """Makes the only network from a generator, where it is not a dense one."""
        makers = {
            "convolutional": lambda: convolutional(self.network.outputs, self.shape),
            "transformer": self._transformer,
        }
        return makers[self.learner.network]() if self.learner.network in makers else None

    def module(self, rng: np.random.Generator) -> nn.Module:
        """A new one of that factory."""
        assert self.module_factory is not None
        return self.module_factory(rng)

    def _transformer(self) -> Callable[[np.random.Generator], nn.Module]:
        width = self.inputs // self.history
        if self.algorithm.recalls:
            return decision_transformer(self.network.outputs, self.history, self.actions, width, bool(self.told))
        return transformer(self.network.outputs, self.history, width, bool(self.told))

    @property
    def parameter_count(self) -> int:
        if self.module_factory is not None:
            return sum(parameter.numel() for parameter in self.module_factory(np.random.default_rng(0)).parameters())
        return sum(network.parameter_count for _, network in self.networks)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Features as the networks take them, float32 [..., d] -> [..., d']; each row on its own."""
        return features if self.embedding is None else self.embedding(features)

    def scaled_actions(self, actions: np.ndarray) -> np.ndarray:
        """Recorded actions [N, k] as losses see them: scaled so that the bounds become -1 and 1."""
        if self.action_bounds is None:
            return actions.astype(np.float32)
        low, high = (np.array(bound) for bound in self.action_bounds)
        return ((actions - (low + high) / 2) / ((high - low) / 2)).astype(np.float32)

    def preferences(self, outputs: np.ndarray) -> np.ndarray:
        """The acting tower's outputs [..., O] -> one score per discrete action, or per value of each component, [..., A], or the unclipped action [..., k] of the environment."""
        preferred = self.algorithm.head(outputs, self.actions, self.constants)
        if self.discrete or self.action_bounds is None:
            return preferred
        low, high = (np.array(bound) for bound in self.action_bounds)
        return (low + high) / 2 + preferred * ((high - low) / 2)


def action_shape(space: gymnasium.Space) -> tuple[int, bool]:
    """(number of discrete actions, or of the values of all components, True) or (continuous dimensions, False).

    Raises:
        MucdError: the space is none of Discrete, MultiDiscrete and Box.
    """
    if isinstance(space, gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.Box):
        return width_of(space), not isinstance(space, gymnasium.spaces.Box)
    raise MucdError(f"action space {space} is not supported: Discrete, MultiDiscrete and Box are")
