"""The parts of one step of the fused engine: passes over one instance's memory (`memory`), compiled by Numba."""

import math

import numba
import numpy as np

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.engines import clipping
from mucd_ray.learn.engines.fused.memory import TILE
from mucd_ray.learn.engines.fused.random import compiled, philox, standard_normals
from mucd_ray.learn.engines.fused.simd import (
    ADD,
    BIAS,
    LANES,
    RECTIFY,
    WHERE_POSITIVE,
    add_column_squares,
    add_row_sums,
    address,
    address_of_doubles,
    multiply,
    scale_or_clear,
    transpose,
    transpose_scaled,
)
from mucd_ray.learn.learner import ADAM_EPSILON, BETA1, BETA2

CLIP_SHRINK, UNDERFLOW = np.float32(1.0 - clipping.ROUNDING), np.float32(clipping.UNDERFLOW)
LEAST_FACTOR = np.float32(clipping.LEAST_FACTOR)
ZERO, ONE = np.float32(0.0), np.float32(1.0)
NOISE = np.uint64(purposes.NOISE)
# Random words made at a time: few enough to stay in the first-level cache.
WORDS = 1024
# Tiles, or clipped trajectories, that are added up in float32 before their sum goes on in float64.
CARRY = 16


@compiled
def matrix(memory, start, rows):
    """View [rows, TILE]."""
    return numba.carray(address(memory, start), (rows, TILE))


@compiled
def start_training(memory, plan, total):
    """Optimiser state zero, target copy equal to the parameters."""
    memory[plan.first : plan.first + plan.size] = ZERO
    memory[plan.second : plan.second + plan.size] = ZERO
    memory[plan.target : plan.target + plan.size] = memory[: plan.size]
    total[:] = 0.0


@compiled
def loss_operands(memory, layers, evaluations, plan):
    """(outputs [O, TILE], context [K, TILE], deltas [O, TILE]) of the tile that is worked on."""
    outputs = layers[-1].outputs
    context = matrix(memory, plan.context, outputs * len(evaluations))
    return matrix(memory, plan.outputs, outputs), context, matrix(memory, layers[-1].delta, outputs)


@compiled
def start_sum(memory, plan):
    """Clear the gradient buffer."""
    memory[plan.gradient : plan.gradient + plan.size] = ZERO


@compiled
def carry(memory, plan, added):
    """After every CARRY things `added` to the gradient buffer: move it to the step's float64 sums, which begin with the first time."""
    if added % CARRY:
        return
    gradient, sums = memory[plan.gradient : plan.gradient + plan.size], numba.carray(address_of_doubles(memory, plan.sums), (plan.size,))
    first = added == CARRY
    for i in range(plan.size):
        sums[i] = np.float64(gradient[i]) if first else sums[i] + np.float64(gradient[i])
        gradient[i] = ZERO


@compiled
def add_noise(memory, layers, plan, key, step, instance, words, added):
    """The sum of a step with its Gaussian noise into the gradient buffer; `words` uint64 [WORDS] are scratch, `added` as for `carry`.

    Noise comes last: rows that are added to large noise, or to a large sum, are rounded by it, so that one unit would move what all others
    add. What the sum plus the noise is rounded to is post-processing.
    """
    half = plan.noises // 2
    noise = memory[plan.noise : plan.noise + plan.noises]
    if plan.noise_scale == 0.0:
        # Plain training: no mechanism has so little.
        if added < CARRY:
            return
        half = 0
    for start in range(0, half, WORDS):
        end = min(start + WORDS, half)
        part = words[: end - start]
        philox(key, 1 + start // 4, NOISE, step, instance, part)
        standard_normals(part, noise[start:end], noise[half + start : half + end])
    if added < CARRY:
        _add_unpacked(memory[plan.gradient : plan.gradient + plan.size], layers, noise, np.float32(plan.noise_scale))
        return
    gradient, sums = memory[plan.gradient : plan.gradient + plan.size], numba.carray(address_of_doubles(memory, plan.sums), (plan.size,))
    for i in range(plan.size):
        sums[i] += np.float64(gradient[i])
    _add_unpacked(sums, layers, noise, plan.noise_scale)
    for i in range(plan.size):
        gradient[i] = np.float32(sums[i])


@compiled
def _add_unpacked(block, layers, flat, scale):
    """Add scale * flat, in the order of `networks.layer_views`, to the layers' weights and biases in a block of floats or doubles."""
    for layer in layers:
        for row in range(layer.outputs):
            target, source = layer.weight + row * layer.stride, layer.flat + row * layer.inputs
            to, what = block[target : target + layer.inputs], flat[source : source + layer.inputs]
            for column in range(layer.inputs):
                to[column] += scale * what[column]
        source = layer.flat + layer.inputs * layer.outputs
        to, what = block[layer.bias : layer.bias + layer.outputs], flat[source : source + layer.outputs]
        for row in range(layer.outputs):
            to[row] += scale * what[row]


@compiled
def tiles_of(size):
    """Number of tiles for `size` rows."""
    return -(-size // TILE)


@compiled
def tile_of(size, tile, tiles):
    """Range of rows of a tile. Tiles have nearly equal numbers of whole vectors: a tile of few rows would leave most lanes empty."""
    vectors = -(-size // LANES)
    return vectors * tile // tiles * LANES, min(vectors * (tile + 1) // tiles * LANES, size)


@compiled
def gather(memory, layers, evaluations, plan, data, rows):
    """Copy the rows' observations, and the next ones if they are read, into the tile -> vectors in use."""
    vectors = -(-len(rows) // LANES)
    _gather(memory, layers[0], data.features, rows, vectors, plan.rows, layers[0].x)
    for evaluation in evaluations:
        if evaluation.next:
            _gather(memory, layers[0], data.next_features, rows, vectors, plan.rows, plan.next_x)
            break
    return vectors


@compiled
def _gather(memory, layer, features, chosen, vectors, rows_start, x_start):
    """Copy the chosen rows to `rows_start` and, transposed, to `x_start`; lanes up to the next whole vector become zero."""
    rows = numba.carray(address(memory, rows_start), (TILE, layer.stride))
    for row in range(len(chosen)):
        at = features[chosen[row]]
        rows[row, :] = ZERO
        for column in range(layer.inputs):
            rows[row, column] = at[column]
    for row in range(len(chosen), vectors * LANES):
        rows[row, :] = ZERO
    transpose(memory, rows_start, layer.stride, vectors * LANES, layer.stride, x_start, TILE)


@compiled
def _forward(memory, layers, parameters, x, vectors, outputs):
    """The network's outputs at `outputs` from the rows at `x`; hidden activations go to the layers' `x`, which adds to `x_squares`."""
    last = len(layers) - 1
    for index in range(len(layers)):
        layer, above = layers[index], layers[min(index + 1, last)]
        multiply(
            memory, parameters + layer.weight, layer.stride, 1, layer.x if index else x, TILE, layer.inputs,
            above.x if index < last else outputs, TILE, layer.outputs, vectors,
            RECTIFY if index < last else BIAS, parameters + layer.bias, 1, above.x_squares,
        )


@compiled
def evaluate(memory, layers, evaluations, plan, parameters, vectors):
    """All evaluations into `plan.context`, then the network itself into `plan.outputs`, whose activations stay for `backward`."""
    for index in range(len(evaluations)):
        evaluation = evaluations[index]
        _forward(
            memory, layers, plan.target if evaluation.target else parameters, plan.next_x if evaluation.next else layers[0].x, vectors,
            plan.context + index * layers[-1].outputs * TILE,
        )
    matrix(memory, plan.squares, 2 * len(layers))[:] = ZERO
    _forward(memory, layers, parameters, layers[0].x, vectors, plan.outputs)


@compiled
def backward(memory, layers, parameters, vectors):
    """Deltas of all layers from the last layer's: back through the weights, and on where the ReLU was open."""
    for index in range(len(layers) - 1, 0, -1):
        layer, below = layers[index], layers[index - 1]
        multiply(
            memory, parameters + layer.weight, 1, layer.stride, layer.delta, TILE, layer.outputs, below.delta, TILE, layer.inputs,
            vectors, WHERE_POSITIVE, layer.x, TILE, below.delta_squares,
        )


@compiled
def clip(memory, layers, plan, rows, vectors):
    """`clipping.clip_factors` of the tile's first `rows` lanes to `plan.factors`, zero in other lanes; deltas of rows that do not count become zero.

    The other factor of such a row's gradient, its inputs, is cleared where `add_gradients` scales it. Squares were summed in groups of
    at least four, but for three of a layer, so a sum of n loses at most n `ROUNDING_PER_TERM`.
    """
    first, last = layers[0], layers[-1]
    add_column_squares(memory, first.x, TILE, first.stride, vectors, first.x_squares)
    add_column_squares(memory, last.delta, TILE, last.height, vectors, last.delta_squares)
    factors = matrix(memory, plan.factors, 1)[0]
    factors[:] = ZERO
    for layer in layers:
        of_x, of_delta = matrix(memory, layer.x_squares, 1)[0], matrix(memory, layer.delta_squares, 1)[0]
        allowance = np.float32(1.0 + clipping.ROUNDING_PER_TERM * (layer.inputs + layer.outputs))
        for row in range(TILE):
            factors[row] += (of_x[row] + ONE) * (of_delta[row] + UNDERFLOW) * allowance
    bound, clean = np.float32(plan.clip_norm) * CLIP_SHRINK, True
    for row in range(TILE):
        squared_norm = factors[row]
        factor = min(bound / np.float32(math.sqrt(squared_norm)), ONE)
        counts = row < rows and squared_norm < np.float32(np.inf) and factor >= LEAST_FACTOR
        clean = clean and (counts or row >= rows)
        factors[row] = factor if counts else ZERO
    if not clean:
        for layer in layers:
            scale_or_clear(memory, layer.delta, TILE, layer.outputs, vectors, plan.factors)
        # The deltas are scaled already.
        for row in range(TILE):
            factors[row] = ONE if factors[row] > ZERO else ZERO


@compiled
def average(memory, plan, rows, count):
    """As `clip`, factors that only divide by `count`, the rows of a trajectory."""
    factors = matrix(memory, plan.factors, 1)[0]
    for row in range(TILE):
        factors[row] = ONE / np.float32(count) if row < rows else ZERO


@compiled
def add_gradients(memory, layers, plan, rows, vectors, gradient):
    """Add the sum over the tile's rows of factor times delta times input to the block at `gradient`, layer by layer."""
    for index in range(len(layers)):
        layer = layers[index]
        transpose_scaled(memory, layer.x, TILE, layer.stride, vectors * LANES, plan.rows, layer.stride, plan.factors)
        multiply(
            memory, layer.delta, TILE, 1, plan.rows, layer.stride, rows,
            gradient + layer.weight, layer.stride, layer.outputs, layer.stride // LANES, ADD,
        )
        for unit in range(0, layer.outputs, LANES):
            add_row_sums(memory, layer.delta + unit * TILE, TILE, vectors, plan.factors, gradient + layer.bias + unit)


@compiled
def start_update(memory, plan):
    """Clear the update of a trajectory -> where the parameters lie that it moves for itself: one local step does not move any."""
    memory[plan.update : plan.update + plan.size] = ZERO
    memory[plan.local_gradient : plan.local_gradient + plan.size] = ZERO
    if plan.local_steps == 1:
        return 0
    memory[plan.local : plan.local + plan.size] = memory[: plan.size]
    return plan.local


@compiled
def move_locally(memory, plan):
    """Add the local gradient to the update, move the local parameters, and clear the gradient."""
    size, rate = plan.size, np.float32(plan.local_rate)
    local, gradient = memory[plan.local : plan.local + size], memory[plan.local_gradient : plan.local_gradient + size]
    update = memory[plan.update : plan.update + size]
    for i in range(size):
        update[i] += gradient[i]
        local[i] -= rate * gradient[i]
        gradient[i] = ZERO


@compiled
def add_clipped(memory, plan):
    """Add the update to the gradient, clipped as a whole to `plan.clip_norm` as `clipping.clip_factors` says; zero if it is not finite."""
    size = plan.size
    update, gradient = memory[plan.update : plan.update + size], memory[plan.gradient : plan.gradient + size]
    squared_norm = 0.0
    for i in range(size):
        squared_norm += np.float64(update[i]) * np.float64(update[i])
    factor = min(plan.clip_norm * (1.0 - clipping.ROUNDING) / math.sqrt(squared_norm), 1.0) if squared_norm < np.inf else 0.0
    if factor >= clipping.LEAST_FACTOR:
        factor = np.float32(factor)
        for i in range(size):
            gradient[i] += factor * update[i]


@compiled
def move(memory, plan, step, total):
    """The optimiser's step with the noisy sum, the target copy's, and the sum of the iterates to average."""
    size = plan.size
    x, gradient = memory[:size], memory[plan.gradient : plan.gradient + size]
    first, second = memory[plan.first : plan.first + size], memory[plan.second : plan.second + size]
    if plan.adam:
        _adam(x, first, second, gradient, plan, step)
    else:
        _sgd(x, first, gradient, plan)
    if plan.target_rate:
        target, rate = memory[plan.target : plan.target + size], np.float32(plan.target_rate)
        for i in range(size):
            target[i] += (x[i] - target[i]) * rate
    if step >= plan.steps - plan.averaged:
        for i in range(size):
            total[i] += x[i]


@compiled
def finish_training(memory, plan, total):
    """The released parameters: the mean of the averaged iterates, or the last ones."""
    if plan.averaged:
        for i in range(plan.size):
            memory[i] = np.float32(total[i] / plan.averaged)


@compiled
def _sgd(x, velocity, gradient, plan):
    """`learner.Sgd`."""
    scale, rate, momentum = np.float32(1 / plan.normaliser), np.float32(plan.learning_rate), np.float32(plan.momentum)
    for i in range(len(x)):
        velocity[i] = velocity[i] * momentum + gradient[i] * scale
        x[i] -= velocity[i] * rate


@compiled
def _adam(x, first, second, gradient, plan, step):
    """`learner.Adam`, operation by operation but for the division by the normaliser: divisions are what this loop waits for."""
    scale, epsilon = np.float32(1 / plan.normaliser), np.float32(ADAM_EPSILON)
    keep_first, keep_second = np.float32(BETA1), np.float32(BETA2)
    new_first, new_second = np.float32(1 - BETA1), np.float32(1 - BETA2)
    correction = np.float32(1 / (1 - BETA2 ** (step + 1)))
    rate = np.float32(plan.learning_rate / (1 - BETA1 ** (step + 1)))
    for i in range(len(x)):
        g = gradient[i] * scale
        first[i] = first[i] * keep_first + g * new_first
        second[i] = second[i] * keep_second + g * g * new_second
        x[i] -= first[i] / (np.float32(math.sqrt(second[i] * correction)) + epsilon) * rate


@compiled
def spread_rows(start, length, cap, uniform, rows):
    """`streams.spread_rows`, shifted by `start`, into rows int64 [>= min(length, cap)] -> how many."""
    if length <= cap:
        for i in range(length):
            rows[i] = start + i
        return length
    for i in range(cap):
        rows[i] = start + min(np.int64((i + uniform) * (length / cap)), length - 1)
    return cap
