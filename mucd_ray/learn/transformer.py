"""A small causal transformer over the last observations of an episode, trained by `engines/plain.py`."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 32, 2, 2


def encoder() -> nn.TransformerEncoder:
    """The layers of all transformers here. They norm first, as in GPT-2. Of its two usual functions torch would take another, faster way when it does not train, with another rounding."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation=functional.silu, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)


class Transformer(nn.Module):
    """Rows of `history` flattened observations, oldest first, [B, history d] -> [B, outputs], of the last one.

    A first token stands before them. Of a module that is `told` a number, the last of [B, history d + 1], it is linear in that number.
    """

    def __init__(self, outputs: int, history: int, width: int, told: bool):
        super().__init__()
        self.history = history
        self.embed = nn.Linear(width, WIDTH)
        self.start = nn.Parameter(torch.zeros(WIDTH))
        self.slope = nn.Parameter(torch.zeros(1, WIDTH)) if told else None
        self.place = nn.Parameter(torch.zeros(history, WIDTH))
        self.encoder = encoder()
        self.head = nn.Linear(WIDTH, outputs)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(history + 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start.expand(len(x), -1)
        if self.slope is not None:
            x, told = x[:, :-1], x[:, -1:]
            start = start + told @ self.slope
        tokens = torch.cat([start[:, None], self.embed(x.unflatten(1, (self.history, -1))) + self.place], dim=1)
        return self.head(self.encoder(tokens, mask=self.mask, is_causal=True)[:, -1])


def transformer(outputs: int, history: int, width: int, told: bool) -> Callable[[np.random.Generator], nn.Module]:
    """Factory of a `Transformer` of observations of `width` entries: matrices are uniform in +-1/sqrt(length of a row), biases 0, norms the identity."""
    return initialised(lambda: Transformer(outputs, history, width, told))


def initialised(shape: Callable[[], nn.Module]) -> Callable[[np.random.Generator], nn.Module]:
    """Factory of what `shape` makes, with parameters drawn anew."""

    def make(generator: np.random.Generator) -> nn.Module:
        module = shape()
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = 1 / math.sqrt(parameter.shape[-1])
                parameter.data = torch.tensor(generator.uniform(-bound, bound, tuple(parameter.shape)), dtype=torch.float32)
            else:
                parameter.data = torch.full_like(parameter, float("norm" in name and name.endswith("weight")))
        return module

    return make


def alike(center: np.ndarray, deviation: np.ndarray, history: int, told: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations of all entries [history d + told] -> those of an observation's entries over all places in a row [history d + told], which one embedding takes;
    the last `told` are as they were."""
    end = len(center) - told
    centers, deviations = center[:end].reshape(history, -1), deviation[:end].reshape(history, -1)
    mean = centers.mean(0)
    spread = np.sqrt((deviations**2 + (centers - mean) ** 2).mean(0))
    return np.append(np.tile(mean, history), center[end:]), np.append(np.tile(spread, history), deviation[end:])


def on_raw_steps(policies: dict[str, Tensor], center: np.ndarray, scale: np.ndarray) -> dict[str, Tensor]:
    """Policies [P, ...] of (x - c) / s with c, s float64 [P, entries] as `alike` gives them, as the same policies of x; of what they are told, x is 0 and is left out."""
    width = policies["embed.weight"].shape[-1]
    weight = policies["embed.weight"].double() / torch.from_numpy(scale[:, None, :width])
    bias = policies["embed.bias"].double() - (weight @ torch.from_numpy(center[:, :width, None]))[..., 0]
    folded = {"embed.weight": weight.float(), "embed.bias": bias.float()}
    if "slope" in policies:
        folded["start"] = (policies["start"].double() - policies["slope"][:, 0].double() * torch.from_numpy(center[:, -1:] / scale[:, -1:])).float()
    return {name: values for name, values in (policies | folded).items() if name != "slope"}
