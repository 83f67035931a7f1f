"""Where everything lies that the fused engine needs for one instance: one float32 array, its `memory`.

Rows of the batch are lanes: a layer's activations are [width, TILE], so that norms, clipping and activation functions run on whole
vectors of rows and products read the weights [out, in] as they are stored. Parameters, target copy, gradient and optimiser state are
blocks of `Plan.size` floats with the same layout; `Plan.sums` is one of doubles.
"""

from collections import namedtuple

import numpy as np

from mucd_ray.learn.engines.fused.simd import LANES
from mucd_ray.learn.networks import Network

# Rows of a tile: four vectors. A layer's activations then fit the first-level cache at width 64.
TILE = 64

# Where a layer's arrays start: weight [outputs, stride] and bias [height] within a block of parameters; x [stride, TILE], delta
# [height, TILE] and column sums of their squares [TILE] in memory. `stride` and `height` are `inputs` and `outputs` rounded up to
# whole vectors, and the surplus is always zero. `flat` is where its weight starts in a flat vector in the order of
# `networks.layer_views`.
LAYER = np.dtype([
    (name, np.int64)
    for name in ("inputs", "outputs", "stride", "height", "flat", "weight", "bias", "x", "delta", "x_squares", "delta_squares")
])
# An evaluation of the network that enters the loss as a constant: of its target copy or not, at the next observation or not.
EVALUATION = np.dtype([("target", np.bool_), ("next", np.bool_)])

# What is read of `units.Units`.
Data = namedtuple("Data", "features next_features actions rewards keeps starts lengths")
# Public numbers of the run, then the starts in memory: blocks of parameters (current ones start at 0), then buffers.
Plan = namedtuple(
    "Plan",
    "steps sample_rate noise_scale clip_norm normaliser adam learning_rate momentum averaged target_rate cap local_steps local_rate "
    "size noises gradient sums first second target local local_gradient update "
    "next_x rows outputs context noise squares factors",
)


def _up(length: int) -> int:
    return -(-length // LANES) * LANES


def layout(network: Network, evaluations: int) -> tuple[np.ndarray, dict[str, int], int]:
    """(layers [L] of LAYER, starts of the other arrays by their names in `Plan`, floats in memory)."""
    layers = np.zeros(len(network.layers), LAYER)
    end = flat = 0

    def take(floats: int) -> int:
        nonlocal end
        start, end = end, end + _up(floats)
        return start

    for layer, (inputs, outputs) in zip(layers, network.layers):
        layer["inputs"], layer["outputs"], layer["flat"] = inputs, outputs, flat
        layer["stride"], layer["height"] = _up(inputs), _up(outputs)
        layer["weight"], layer["bias"] = take(outputs * layer["stride"]), take(outputs)
        flat += (inputs + 1) * outputs
    size = end
    blocks = ("gradient", "first", "second", "target", "local", "local_gradient", "update")
    starts = {"size": size, **{name: take(size) for name in blocks}, "sums": take(2 * size)}
    # As `streams.gaussian_noise` draws them.
    starts["noises"] = -(-flat // 64) * 64
    starts["noise"] = take(starts["noises"])
    for layer in layers:
        layer["x"], layer["delta"] = take(layer["stride"] * TILE), take(layer["height"] * TILE)
    starts["rows"] = take(TILE * max(layers["stride"]))
    starts["next_x"] = take(layers[0]["stride"] * TILE)
    starts["outputs"], starts["context"] = take(network.outputs * TILE), take(network.outputs * evaluations * TILE)
    starts["factors"], starts["squares"] = take(TILE), end
    for layer in layers:
        layer["x_squares"], layer["delta_squares"] = take(TILE), take(TILE)
    return layers, starts, end
