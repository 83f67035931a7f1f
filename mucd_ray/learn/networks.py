"""Policies as plain data: a ReLU network's shape, and the parameters of many instances stacked in one tensor per layer."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mucd_ray.errors import MucdError


@dataclass(frozen=True, kw_only=True)
class Network:
    """A fully connected ReLU network; `hidden=()` is a linear map.

    Attributes:
        inputs, outputs: width of the input and of the output, at least 1.
        hidden: widths of the hidden layers.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in (self.inputs, *self.hidden, self.outputs):
            if int(width) != width or width < 1:
                raise MucdError(f"layer width {width} must be a whole number, at least 1")

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """((inputs, outputs), ...) of every layer, first to last."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return tuple(zip(widths[:-1], widths[1:]))

    @property
    def parameter_count(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)


@dataclass(frozen=True, kw_only=True)
class RandomFeatures:
    """Public random Fourier features (Rahimi and Recht 2007): sqrt(2 / count) cos(W s + b), which fill the unit ball whatever s is.

    A linear function of them approximates a smooth function of s, while its gradient has a bounded norm and few parameters.
    W and b follow from the fields alone, never from data.

    Attributes:
        inputs, count: width of s and number of features.
        bandwidth: standard deviation of W is 1 / bandwidth.
    """

    inputs: int
    count: int
    bandwidth: float
    weight: np.ndarray = field(init=False, repr=False, compare=False)
    phase: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        generator = np.random.Generator(np.random.Philox(key=self.count, counter=[self.inputs, 0, 0, 0]))
        object.__setattr__(self, "weight", generator.standard_normal((self.inputs, self.count)) / self.bandwidth)
        object.__setattr__(self, "phase", generator.uniform(0.0, 2 * math.pi, self.count))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 [..., inputs] -> float32 [..., count]; each row by itself, non-finite rows give non-finite features.

        Terms are added input by input, since the rounding of a matrix product may depend on the number of rows.
        """
        total = np.broadcast_to(self.phase, (*features.shape[:-1], self.count)).copy()
        with np.errstate(invalid="ignore"):
            for index in range(self.inputs):
                total += features[..., index, None] * self.weight[index]
            return (np.cos(total) * math.sqrt(2 / self.count)).astype(np.float32)


def initial_parameters(network: Network, generator: np.random.Generator) -> np.ndarray:
    """Initial flat parameters of one instance, float32 [parameter_count], in the order of `layer_views`.

    A linear policy starts at zero: its loss is convex, and zero prefers no action. Otherwise every weight and bias is
    uniform in +-1/sqrt(inputs), PyTorch's default for `nn.Linear` (Kaiming uniform with a = sqrt(5)).
    """
    if not network.hidden:
        return np.zeros(network.parameter_count, np.float32)
    pieces = []
    for inputs, outputs in network.layers:
        pieces.append(generator.uniform(-1.0, 1.0, (inputs + 1) * outputs) / math.sqrt(inputs))
    return np.concatenate(pieces).astype(np.float32)


def layer_views(network: Network, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Views (weight [P, out, in], bias [P, out]) into `flat` [P, >= parameter_count].

    The order is that of `torch.nn.Sequential(nn.Linear, nn.ReLU, ...).parameters()`, so that one stream of noise means the
    same in the batched engine and in the engine for any `nn.Module`.
    """
    views, start = [], 0
    for inputs, outputs in network.layers:
        weight = flat[:, start : start + inputs * outputs].unflatten(1, (outputs, inputs))
        start += inputs * outputs
        views.append((weight, flat[:, start : start + outputs]))
        start += outputs
    return views


def named_parameters(network: Network, flat: Tensor) -> dict[str, Tensor]:
    """Released form: {"0.weight": [P, in, out], "0.bias": [P, out], "1.weight": ...}, contiguous copies."""
    named = {}
    for layer, (weight, bias) in enumerate(layer_views(network, flat)):
        named[f"{layer}.weight"] = weight.transpose(1, 2).contiguous()
        named[f"{layer}.bias"] = bias.contiguous()
    return named


def stacked_layers(network: Network, parameters: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The released form as a list of (weight [P, in, out], bias [P, out]).

    Raises:
        MucdError: a tensor is missing or its shape is not the network's.
    """
    stacked = []
    for layer, (inputs, outputs) in enumerate(network.layers):
        try:
            weight, bias = parameters[f"{layer}.weight"], parameters[f"{layer}.bias"]
        except KeyError as missing:
            raise MucdError(f"parameters lack {missing}: they belong to another network than {network}") from None
        if tuple(weight.shape[1:]) != (inputs, outputs) or tuple(bias.shape) != (weight.shape[0], outputs):
            raise MucdError(f"layer {layer} has shapes {tuple(weight.shape)}, {tuple(bias.shape)}: {network} does not fit")
        stacked.append((weight, bias))
    return stacked


def forward(parameters: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Outputs [P, B, out] of stacked networks (weight [P, in, out], bias [P, out]) at their own inputs x [P, B, in]."""
    for layer, (weight, bias) in enumerate(parameters):
        if layer:
            x = torch.relu(x)
        x = torch.baddbmm(bias[:, None, :], x, weight)
    return x


def as_module(network: Network, flat: np.ndarray) -> torch.nn.Sequential:
    """One instance as an ordinary PyTorch module, from its flat parameters [parameter_count]."""
    modules = []
    for inputs, outputs in network.layers:
        modules += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    module = torch.nn.Sequential(*modules[:-1])
    torch.nn.utils.vector_to_parameters(torch.tensor(flat, dtype=torch.float32), module.parameters())
    return module
