"""The fused engine: one compiled kernel trains one instance after the other, with all of its state in cache.

Parameters, optimiser state, gradient and activations of the instance lie in one float32 array, `memory`. Rows of the batch are
lanes: a layer's activations are [width, TILE], so that norms, clipping and activation functions run on whole vectors of rows and
products read the weights [out, in] as they are stored. A step is: noise into the gradient buffer; Poisson sample; for each tile
of rows forward, deltas, norms, clip, and one product per layer into the buffer; then the optimiser.

The kernel draws from the streams of `streams` and rounds as `clipping` promises, so its results are those of the torch engine to
float32 rounding. They are bit-identical whatever the grouping, since an instance never shares an operation with another.
"""

import functools
import hashlib
import inspect
import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from numba.extending import register_jitable

from mucd_ray.learn import clipping
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.fused_random import compiled, philox, poisson_sample, standard_normals
from mucd_ray.learn.learner import ADAM_EPSILON, BETA1, BETA2, Learner
from mucd_ray.learn.networks import Network, initial_parameters
from mucd_ray.learn.simd import (
    LANES,
    add_bias,
    add_bias_and_rectify,
    add_column_squares,
    add_row_sums,
    address,
    keep_where_positive,
    multiply,
    scale_or_clear,
    transpose,
)
from mucd_ray.learn.streams import Streams
from mucd_ray.mechanism.mechanism import Mechanism

# Rows of a tile: four vectors. A layer's activations then fit the first-level cache at width 64.
TILE = 64
CLIP_SHRINK, UNDERFLOW = np.float32(1.0 - clipping.ROUNDING), np.float32(clipping.UNDERFLOW)
ZERO, ONE = np.float32(0.0), np.float32(1.0)
INITIALISE, NOISE, SAMPLE = (np.uint64(purpose) for purpose in (purposes.INITIALISE, purposes.NOISE, purposes.SAMPLE))

# Where a layer's arrays start in memory: weight [outputs, stride], bias [height], x [stride, TILE] and its transpose rows
# [TILE, stride], delta [height, TILE]. `stride` and `height` are `inputs` and `outputs` rounded up to whole vectors, and the
# surplus is always zero. `flat` is where its weight starts in a flat vector in the order of `networks.layer_views`.
LAYER = np.dtype([
    (name, np.int64) for name in ("inputs", "outputs", "stride", "height", "flat", "weight", "bias", "x", "rows", "delta")
])

Plan = namedtuple(
    "Plan",
    "steps sample_rate noise_scale clip_norm normaliser adam learning_rate momentum averaged "
    "size gradient first second outputs noise scratch",
)


def _up(length: int) -> int:
    return -(-length // LANES) * LANES


def layout(network: Network) -> tuple[np.ndarray, dict[str, int], int]:
    """(layers [L] of LAYER, starts of the other arrays, floats in memory)."""
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
    starts = {"size": size, "gradient": take(size), "first": take(size), "second": take(size)}
    starts["noise"] = take(flat + 2 * 64)
    for layer in layers:
        layer["x"], layer["rows"] = take(layer["stride"] * TILE), take(TILE * layer["stride"])
        layer["delta"] = take(layer["height"] * TILE)
    starts["outputs"], starts["scratch"] = take(network.outputs * TILE), take(3 * TILE)
    return layers, starts, end


@compiled
def _matrix(memory, start, rows):
    """View [rows, TILE]."""
    return numba.carray(address(memory, start), (rows, TILE))


@compiled
def _unpack(memory, start, layers, flat, scale):
    """Write scale * flat, in the order of `networks.layer_views`, to the layers' weights and biases that begin at `start`."""
    for layer in layers:
        for row in range(layer.outputs):
            target, source = start + layer.weight + row * layer.stride, layer.flat + row * layer.inputs
            to, what = memory[target : target + layer.inputs], flat[source : source + layer.inputs]
            for column in range(layer.inputs):
                to[column] = scale * what[column]
        source = layer.flat + layer.inputs * layer.outputs
        to, what = memory[start + layer.bias : start + layer.bias + layer.outputs], flat[source : source + layer.outputs]
        for row in range(layer.outputs):
            to[row] = scale * what[row]


@compiled
def _gather(memory, layer, features, sample):
    """Copy the sampled rows to the first layer's `rows` and, transposed, `x`; lanes beyond the sample become zero."""
    x = _matrix(memory, layer.x, layer.inputs)
    rows = numba.carray(address(memory, layer.rows), (TILE, layer.stride))
    for row in range(len(sample)):
        unit = features[sample[row]]
        for column in range(layer.inputs):
            rows[row, column] = unit[column]
            x[column, row] = unit[column]
    for column in range(layer.inputs):
        for row in range(len(sample), TILE):
            x[column, row] = ZERO


@compiled
def _squared_norms(memory, layers, vectors, scratch):
    """`clipping.squared_norms` of the tile's rows, into the first of three vectors [TILE] at `scratch`."""
    sums = _matrix(memory, scratch, 3)
    total, of_x, of_delta = sums[0], sums[1], sums[2]
    total[:] = ZERO
    for layer in layers:
        of_x[:], of_delta[:] = ONE, UNDERFLOW
        add_column_squares(memory, layer.x, TILE, layer.stride, vectors, scratch + TILE)
        add_column_squares(memory, layer.delta, TILE, layer.height, vectors, scratch + 2 * TILE)
        allowance = np.float32(1.0 + clipping.ROUNDING_PER_TERM * (layer.inputs + layer.outputs))
        for row in range(TILE):
            total[row] += of_x[row] * of_delta[row] * allowance


@compiled
def _clip(memory, layers, norms, rows, vectors, clip_norm):
    """From the squared norms at `norms`, scale the deltas of the first `rows` lanes as `clipping.clip_factors` says; clear all values of non-finite rows and of other lanes."""
    bound, clean = np.float32(clip_norm) * CLIP_SHRINK, True
    factors = _matrix(memory, norms, 1)[0]
    for row in range(TILE):
        squared_norm = factors[row]
        finite = row < rows and squared_norm < np.float32(np.inf)
        clean = clean and (finite or row >= rows)
        factors[row] = min(bound / np.float32(math.sqrt(squared_norm)), ONE) if finite else ZERO
    for layer in layers:
        scale_or_clear(memory, layer.delta, TILE, layer.outputs, vectors, norms, 0)
    if not clean:
        for row in range(TILE):
            factors[row] = ONE if factors[row] > ZERO else ZERO
        for layer in layers:
            scale_or_clear(memory, layer.x, TILE, layer.inputs, vectors, norms, 0)


@compiled
def _add_gradients(memory, layers, rows, vectors, gradient):
    """Add the clipped sum over the tile's rows to the gradient buffer, layer by layer."""
    for index in range(len(layers)):
        layer = layers[index]
        transpose(memory, layer.x, TILE, layer.stride, vectors * LANES, layer.rows, layer.stride)
        multiply(
            memory, layer.delta, TILE, 1, layer.rows, layer.stride, rows,
            gradient + layer.weight, layer.stride, layer.outputs, layer.stride // LANES, True,
        )
        for unit in range(0, layer.outputs, LANES):
            add_row_sums(memory, layer.delta + unit * TILE, TILE, vectors, gradient + layer.bias + unit)


@compiled
def _sgd(x, velocity, gradient, plan):
    normaliser, rate, momentum = np.float32(plan.normaliser), np.float32(plan.learning_rate), np.float32(plan.momentum)
    for i in range(len(x)):
        velocity[i] = velocity[i] * momentum + gradient[i] / normaliser
        x[i] -= velocity[i] * rate


@compiled
def _adam(x, first, second, gradient, plan, step):
    """`learner.Adam`, operation by operation."""
    normaliser, epsilon = np.float32(plan.normaliser), np.float32(ADAM_EPSILON)
    keep_first, keep_second = np.float32(BETA1), np.float32(BETA2)
    new_first, new_second = np.float32(1 - BETA1), np.float32(1 - BETA2)
    correction = np.float32(1 / (1 - BETA2 ** (step + 1)))
    rate = np.float32(plan.learning_rate / (1 - BETA1 ** (step + 1)))
    for i in range(len(x)):
        g = gradient[i] / normaliser
        first[i] = first[i] * keep_first + g * new_first
        second[i] = second[i] * keep_second + g * g * new_second
        x[i] -= first[i] / (np.float32(math.sqrt(second[i] * correction)) + epsilon) * rate


@compiled
def _forward(memory, layers, vectors, output_start):
    """Activations of all layers, and the network's outputs at `output_start`, from the first layer's `x`."""
    for index in range(len(layers)):
        layer, hidden = layers[index], index < len(layers) - 1
        target = layers[index + 1].x if hidden else output_start
        multiply(
            memory, layer.weight, layer.stride, 1, layer.x, TILE, layer.inputs, target, TILE, layer.outputs, vectors, False
        )
        if hidden:
            add_bias_and_rectify(memory, target, TILE, layer.outputs, vectors, layer.bias, 1)
        else:
            add_bias(memory, target, TILE, layer.outputs, vectors, layer.bias, 1)


@compiled
def _backward(memory, layers, vectors):
    """Deltas of all layers from the last layer's: back through the weights, and on where the ReLU was open."""
    for index in range(len(layers) - 1, 0, -1):
        layer, below = layers[index], layers[index - 1]
        multiply(
            memory, layer.weight, 1, layer.stride, layer.delta, TILE, layer.outputs, below.delta, TILE, layer.inputs, vectors, False
        )
        keep_where_positive(memory, below.delta, TILE, layer.inputs, vectors, layer.x, TILE)


def _kernel(delta: Callable) -> Callable:
    """The training function for one loss, not yet compiled. It closes over `delta` alone: Numba's cache key pickles what it closes over."""
    # Inlined, so that no two losses can meet under one name (see `simd`), and because a call for each row is slow.
    register_jitable(forceinline=True)(delta)

    def train(memory, layers, features, actions, plan, key, instance, words, total):
        x = memory[: plan.size]
        gradient = memory[plan.gradient : plan.gradient + plan.size]
        first, second = memory[plan.first : plan.first + plan.size], memory[plan.second : plan.second + plan.size]
        noise = memory[plan.noise : plan.noise + 2 * len(words)]
        first[:], second[:], total[:] = ZERO, ZERO, 0.0
        sample = np.empty(0, np.int64)
        outputs = _matrix(memory, plan.outputs, layers[-1].outputs)
        deltas = _matrix(memory, layers[-1].delta, layers[-1].outputs)
        for step in range(plan.steps):
            philox(key, 1, NOISE, np.uint64(step), instance, words)
            standard_normals(words, noise)
            _unpack(memory, plan.gradient, layers, noise, np.float32(plan.noise_scale))
            sample, size = poisson_sample(key, SAMPLE, np.uint64(step), instance, len(features), plan.sample_rate, sample)
            # Tiles of nearly equal numbers of whole vectors: a tile of few rows would leave most lanes empty.
            vectors = -(-size // LANES)
            tiles = -(-vectors * LANES // TILE)
            for tile in range(tiles):
                start, end = vectors * tile // tiles * LANES, min(vectors * (tile + 1) // tiles * LANES, size)
                rows, used = end - start, -(-(end - start) // LANES)
                _gather(memory, layers[0], features, sample[start:end])
                _forward(memory, layers, used, plan.outputs)
                for row in range(rows):
                    delta(outputs[:, row], actions[sample[start + row]], deltas[:, row])
                _backward(memory, layers, used)
                _squared_norms(memory, layers, used, plan.scratch)
                _clip(memory, layers, plan.scratch, rows, used, plan.clip_norm)
                _add_gradients(memory, layers, rows, used, plan.gradient)
            if plan.adam:
                _adam(x, first, second, gradient, plan, step)
            else:
                _sgd(x, first, gradient, plan)
            if step >= plan.steps - plan.averaged:
                for i in range(plan.size):
                    total[i] += x[i]
        if plan.averaged:
            for i in range(plan.size):
                x[i] = np.float32(total[i] / plan.averaged)

    return train


def _digest() -> str:
    """Of everything compiled code depends on beside the loss and its arguments: the sources of this room and the processor."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    processor = f"{llvmlite.binding.get_host_cpu_name()} {sorted(llvmlite.binding.get_host_cpu_features().items())}"
    return hashlib.sha256(sources + processor.encode()).hexdigest()[:16]


# Taken when the sources are imported: they may have changed by the time a kernel is compiled.
DIGEST = _digest()


@functools.cache
def compiled_kernel(delta: Callable, signature: tuple) -> Callable:
    """The kernel of one loss, compiled for arguments of these Numba types; kept in Numba's cache folder where one is writable.

    Numba keeps one index per function name and looks at the time stamp of one source file only. The name therefore holds a digest of
    all that matters, the file that defines `delta` included (not what that file imports from elsewhere): an entry is never stale,
    and processes that compile at the same moment write the same content.
    """
    for cache in (True, False):
        train = _kernel(delta)
        try:
            if cache:
                source = hashlib.sha256(Path(inspect.getfile(delta)).read_bytes() + str(signature).encode()).hexdigest()[:16]
                train.__qualname__ = train.__name__ = f"train_{delta.__qualname__}_{source}_{DIGEST}"
            kernel = numba.njit(cache=cache, nogil=True, error_model="numpy")(train)
            kernel.compile(signature)
            return kernel
        except (OSError, RuntimeError):
            # No source to name it by, no folder to write to, or none any more.
            if not cache:
                raise
    raise AssertionError("unreachable")


class FusedTrainer:
    """Trains instances one at a time; everything an instance needs is allocated once."""

    def __init__(self, network: Network, learner: Learner, mechanism: Mechanism, delta: Callable, features, actions, streams: Streams):
        self.network, self.streams = network, streams
        self.layers, starts, floats = layout(network)
        self.plan = Plan(
            steps=mechanism.steps, sample_rate=float(mechanism.sample_rate),
            noise_scale=float(mechanism.noise_multiplier * mechanism.clip_norm), clip_norm=float(mechanism.clip_norm),
            normaliser=float(mechanism.normaliser), adam=learner.optimiser == "adam",
            learning_rate=float(learner.learning_rate), momentum=float(learner.momentum),
            averaged=learner.averaged_steps(mechanism.steps), **starts,
        )
        self.features, self.actions = _read_only(features), _read_only(actions)
        # Vectors that cross a cache line are loaded at half the speed.
        raw = np.zeros(floats + LANES, np.float32)
        skip = -raw.ctypes.data // 4 % LANES
        self.memory = raw[skip : skip + floats]
        self.words = np.empty(-(-network.parameter_count // 64) * 32, np.uint64)
        self.total = np.zeros(self.plan.size)
        arguments = self._arguments(0)
        self.kernel = compiled_kernel(delta, tuple(numba.typeof(argument) for argument in arguments))

    def _arguments(self, instance: int) -> tuple:
        return (
            self.memory, self.layers, self.features, self.actions, self.plan, self.streams.key, np.uint64(instance),
            self.words, self.total,
        )

    def train(self, instance: int) -> np.ndarray:
        """Flat parameters float32 [parameter_count] of one trained instance."""
        return self.train_from(initial_parameters(self.network, self.streams.generator(instance, 0, purposes.INITIALISE)), instance)

    def train_from(self, initial: np.ndarray, instance: int) -> np.ndarray:
        """The same from given initial parameters."""
        self.memory[:] = 0.0
        for layer, weight, bias in self._views(0):
            end = layer["flat"] + weight.size
            weight[:] = initial[layer["flat"] : end].reshape(weight.shape)
            bias[:] = initial[end : end + len(bias)]
        self.kernel(*self._arguments(instance))
        return self.packed(0)

    def packed(self, start: int) -> np.ndarray:
        """Flat copy of the parameters (start = 0) or of the gradient buffer (start = plan.gradient)."""
        return np.concatenate([part.ravel() for _, *parts in self._views(start) for part in parts])

    def _views(self, start: int):
        for layer in self.layers:
            weight = self.memory[start + layer["weight"] :][: layer["outputs"] * layer["stride"]]
            yield (
                layer, weight.reshape(layer["outputs"], layer["stride"])[:, : layer["inputs"]],
                self.memory[start + layer["bias"] :][: layer["outputs"]],
            )


def _read_only(array: np.ndarray) -> np.ndarray:
    """A contiguous view that cannot be written to: one type for the compiler, whoever owns the memory."""
    view = np.require(array, np.int64 if array.ndim == 1 else np.float32, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def clipped_sum(network: Network, flat: np.ndarray, features, actions, delta: Callable, clip_norm: float) -> np.ndarray:
    """The kernel's clipped sum over all units without noise, float32 [parameter_count], at parameters `flat`: for tests."""
    mechanism = Mechanism(sample_rate=1.0, noise_multiplier=1.0, clip_norm=clip_norm, steps=1, normaliser=1.0)
    trainer = FusedTrainer(network, Learner(learning_rate=1.0), mechanism, delta, features, actions, Streams(bytes(16)))
    trainer.plan = trainer.plan._replace(noise_scale=0.0)
    trainer.train_from(flat, 0)
    return trainer.packed(trainer.plan.gradient)
