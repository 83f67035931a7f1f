"""The attacker's own learner: a plain differentiable clone, by which attacks see what a row does to a policy."""

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mucd_ray.data.dataset import OfflineDataset

# Enough for a surrogate; attacks are to be cheap.
HIDDEN, STEPS, BATCH, LEARNING_RATE = 64, 1500, 256, 3e-3


class Clone(nn.Module):
    """Behaviour cloning of observations [B, ...] by two hidden layers, on observations normalised by the data's own statistics.

    Outputs are one score for each discrete action, or continuous actions in [-1, 1] of their bounds.
    """

    def __init__(self, dataset: OfflineDataset, seed: int):
        super().__init__()
        flat = dataset.observations.reshape(len(dataset), -1).astype(np.float64)
        self.center, scale = torch.from_numpy(flat.mean(0)).float(), torch.from_numpy(flat.std(0)).float()
        self.scale = torch.where(scale > 0, scale, 1.0)
        self.discrete = isinstance(dataset.action_space, gymnasium.spaces.Discrete)
        self.space, generator = dataset.action_space, torch.Generator().manual_seed(seed)
        outputs = counts_of(self.space)[1] if self.discrete else dataset.actions.shape[1]
        self.layers = nn.Sequential(nn.Linear(flat.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
        with torch.no_grad():
            for layer in list(self.layers)[::2]:
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / layer.in_features) ** 0.5)
                layer.bias.zero_()
        x, y = self.inputs(dataset.observations), self.targets(dataset.actions)
        optimiser = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
            optimiser.zero_grad()
            self.losses(x[rows], y[rows]).mean().backward()
            optimiser.step()

    def inputs(self, observations: np.ndarray) -> Tensor:
        """Normalised features [B, d] of observations [B, ...]."""
        return (torch.from_numpy(np.ascontiguousarray(observations).reshape(len(observations), -1).astype(np.float32)) - self.center) / self.scale

    def raw(self, inputs: Tensor) -> np.ndarray:
        """Observations as rows of numbers, float64 [B, d], of normalised features."""
        return (inputs.detach() * self.scale + self.center).double().numpy()

    def targets(self, actions: np.ndarray) -> Tensor:
        """What outputs should be for actions as the dataset holds them."""
        if self.discrete:
            return torch.from_numpy(actions - counts_of(self.space)[0])
        low, high = bounds_of(self.space)
        return torch.from_numpy((2 * (actions - low) / (high - low) - 1).astype(np.float32))

    def losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, [B]."""
        outputs = self.layers(x)
        return functional.cross_entropy(outputs, targets, reduction="none") if self.discrete else (outputs - targets).square().sum(-1)

    def opposite(self, observations: np.ndarray) -> np.ndarray:
        """The actions that this clone takes least of all at these observations: the least likely one, or the farther bound in each dimension."""
        with torch.no_grad():
            outputs = self.layers(self.inputs(observations)).numpy()
        if self.discrete:
            return outputs.argmin(-1) + counts_of(self.space)[0]
        low, high = bounds_of(self.space)
        return np.where(outputs > 0, low, high).astype(np.float32)


def counts_of(space: gymnasium.Space) -> tuple[int, int]:
    """The first of discrete actions, and how many there are."""
    assert isinstance(space, gymnasium.spaces.Discrete)
    return int(space.start), int(space.n)


def bounds_of(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest continuous actions, float32 [d] each."""
    assert isinstance(space, gymnasium.spaces.Box)
    return space.low.astype(np.float32), space.high.astype(np.float32)
