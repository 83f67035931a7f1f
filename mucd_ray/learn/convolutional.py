"""A small convolutional network for stacked frames, trained by `engines/modules.py`."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

FRAMES = (4, 42, 42)


def convolutional(outputs: int, shape: tuple[int, int, int] = FRAMES) -> Callable[[np.random.Generator], nn.Module]:
    """Factory of networks from rows of flattened frames [B, prod(shape)] to [B, outputs], after Mnih et al. 2013.

    Two convolutions (16 filters of 8 x 8 with stride 4, 32 of 4 x 4 with stride 2) and a linear layer, with ReLU between; no layer mixes
    rows. Every weight and bias is uniform in +-1/sqrt(number of inputs of its unit) from the given generator.
    """
    channels, height, width = shape

    def after(size: int) -> int:
        return ((size - 8) // 4 + 1 - 4) // 2 + 1

    def make(generator: np.random.Generator) -> nn.Module:
        module = nn.Sequential(
            nn.Unflatten(1, shape),
            nn.Conv2d(channels, 16, 8, stride=4), nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * after(height) * after(width), outputs),
        )
        for layer in module:
            if parameters := list(layer.parameters()):
                bound = 1 / math.sqrt(parameters[0][0].numel())
                for parameter in parameters:
                    parameter.data = torch.tensor(generator.uniform(-bound, bound, tuple(parameter.shape)), dtype=torch.float32)
        return module

    return make
