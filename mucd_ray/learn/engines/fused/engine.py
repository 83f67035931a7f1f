"""The fused engine: one compiled kernel trains one instance after the other, with all of its state in cache.

A step is: Poisson sample of units; for each tile of rows the passes of `step` (forward, deltas, norms, clip, and one product per
layer into the gradient buffer); noise; then the optimiser. Where units are trajectories, tiles hold rows of one trajectory, its update is
summed in a buffer of its own, clipped as a whole and added.

Sums of more than 16 tiles, or clipped trajectories, go on in float64: what a unit adds is rounded beside at most 1024 others.

The kernel draws from the streams of `streams` and rounds as `clipping` promises, so its results are those of the torch engine to
float32 rounding. They are bit-identical whatever the grouping, since an instance never shares an operation with another.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from numba.extending import register_jitable

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.engines.fused.memory import EVALUATION, Data, Plan, layout
from mucd_ray.learn.engines.fused.random import philox, poisson_sample, uniform
from mucd_ray.learn.engines.fused.simd import LANES
from mucd_ray.learn.engines.fused.step import (
    WORDS,
    add_clipped,
    add_gradients,
    add_noise,
    average,
    backward,
    carry,
    clip,
    evaluate,
    finish_training,
    gather,
    loss_operands,
    move,
    move_locally,
    spread_rows,
    start_sum,
    start_training,
    start_update,
    tile_of,
    tiles_of,
)
from mucd_ray.learn.engines.stacked import initial_flat
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism, NoisySteps

SAMPLE, SUBSET = np.uint64(purposes.SAMPLE), np.uint64(purposes.SUBSET)


def _transition_kernel(delta: Callable) -> Callable:
    """The training function for one loss and transitions as units, not yet compiled.

    It closes over `delta` alone, as does the next one: Numba's cache key pickles what they close over.
    """

    def train(memory, layers, evaluations, plan, data, constants, key, instance, words, total):
        start_training(memory, plan, total)
        outputs, context, deltas = loss_operands(memory, layers, evaluations, plan)
        sample = np.empty(0, np.int64)
        for step in range(plan.steps):
            start_sum(memory, plan)
            sample, size = poisson_sample(key, SAMPLE, np.uint64(step), instance, len(data.starts), plan.sample_rate, sample)
            tiles = tiles_of(size)
            for tile in range(tiles):
                start, end = tile_of(size, tile, tiles)
                vectors = gather(memory, layers, evaluations, plan, data, sample[start:end])
                evaluate(memory, layers, evaluations, plan, 0, vectors)
                for row in range(end - start):
                    unit = sample[start + row]
                    delta(outputs[:, row], context[:, row], data.actions[unit], data.rewards[unit], data.keeps[unit], constants, deltas[:, row])
                backward(memory, layers, 0, vectors)
                clip(memory, layers, plan, end - start, vectors)
                add_gradients(memory, layers, plan, end - start, vectors, plan.gradient)
                carry(memory, plan, tile + 1)
            add_noise(memory, layers, plan, key, np.uint64(step), instance, words, tiles)
            move(memory, plan, step, total)
        finish_training(memory, plan, total)

    return train


def _trajectory_kernel(delta: Callable) -> Callable:
    """The training function for one loss and trajectories as units, not yet compiled."""

    def train(memory, layers, evaluations, plan, data, constants, key, instance, words, total):
        start_training(memory, plan, total)
        outputs, context, deltas = loss_operands(memory, layers, evaluations, plan)
        sample, rows, word = np.empty(0, np.int64), np.empty(plan.cap, np.int64), np.empty(32, np.uint64)
        for step in range(plan.steps):
            start_sum(memory, plan)
            sample, size = poisson_sample(key, SAMPLE, np.uint64(step), instance, len(data.starts), plan.sample_rate, sample)
            for unit in range(size):
                trajectory = sample[unit]
                philox(key, 1, SUBSET | np.uint64(trajectory) << np.uint64(8), np.uint64(step), instance, word)
                count = spread_rows(data.starts[trajectory], data.lengths[trajectory], plan.cap, uniform(word[0]), rows)
                if not count:
                    carry(memory, plan, unit + 1)
                    continue
                parameters = start_update(memory, plan)
                for local_step in range(plan.local_steps):
                    tiles = tiles_of(count)
                    for tile in range(tiles):
                        start, end = tile_of(count, tile, tiles)
                        vectors = gather(memory, layers, evaluations, plan, data, rows[start:end])
                        evaluate(memory, layers, evaluations, plan, parameters, vectors)
                        for row in range(end - start):
                            at = rows[start + row]
                            delta(outputs[:, row], context[:, row], data.actions[at], data.rewards[at], data.keeps[at], constants, deltas[:, row])
                        backward(memory, layers, parameters, vectors)
                        average(memory, plan, end - start, count)
                        add_gradients(memory, layers, plan, end - start, vectors, plan.local_gradient)
                    move_locally(memory, plan)
                add_clipped(memory, plan)
                carry(memory, plan, unit + 1)
            add_noise(memory, layers, plan, key, np.uint64(step), instance, words, size)
            move(memory, plan, step, total)
        finish_training(memory, plan, total)

    return train


# A source is trained on as one long trajectory.
KERNELS = {"transition": _transition_kernel, "trajectory": _trajectory_kernel}


def _digest() -> str:
    """Of everything compiled code depends on beside a loss from elsewhere and its arguments: the sources of this room and the processor."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parents[2].rglob("*.py")))
    processor = f"{llvmlite.binding.get_host_cpu_name()} {sorted(llvmlite.binding.get_host_cpu_features().items())}"
    return hashlib.sha256(sources + processor.encode()).hexdigest()[:16]


# Taken when the sources are imported: they may have changed by the time a kernel is compiled.
DIGEST = _digest()


@functools.cache
def compiled_kernel(delta: Callable, unit: str, signature: tuple) -> Callable:
    """The kernel of one loss and one kind of unit, compiled for arguments of these Numba types; kept in Numba's cache folder where one is writable.

    Numba keeps one index per function name and looks at the time stamp of one source file only. The name therefore holds a digest of
    all that matters, the file that defines `delta` included (not what that file imports from elsewhere): an entry is never stale,
    and processes that compile at the same moment write the same content.
    """
    # Inlined, so that no two losses can meet under one name (see `simd`), and because a call for each row is slow.
    register_jitable(forceinline=True)(delta)
    for cache in (True, False):
        train = KERNELS[unit](delta)
        try:
            if cache:
                source = hashlib.sha256(Path(inspect.getfile(delta)).read_bytes() + str(signature).encode()).hexdigest()[:16]
                train.__qualname__ = train.__name__ = f"train_{unit}_{delta.__qualname__}_{source}_{DIGEST}"
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

    def __init__(self, problem: Problem, mechanism: NoisySteps, units: Units, streams: Streams):
        self.problem, self.streams, learner = problem, streams, problem.learner
        (_, network), *others = problem.networks
        if others:
            raise ValueError(f"the fused engine trains one network, {learner.algorithm!r} has {len(problem.networks)}")
        context = problem.algorithm.context
        self.evaluations = np.array([(evaluation.target, evaluation.next) for evaluation in context], EVALUATION)
        self.layers, starts, floats = layout(network, len(context))
        self.plan = Plan(
            steps=mechanism.steps, sample_rate=float(mechanism.sample_rate),
            noise_scale=float(mechanism.noise_multiplier * mechanism.clip_norm), clip_norm=float(mechanism.clip_norm),
            normaliser=float(mechanism.normaliser), adam=learner.optimiser == "adam",
            learning_rate=float(learner.learning_rate), momentum=float(learner.momentum),
            averaged=learner.averaged_steps(mechanism.steps),
            target_rate=float(problem.constants["target_rate"]) if problem.algorithm.has_target else 0.0,
            cap=int(min(learner.local.cap, max(units.lengths.max(), 1))), local_steps=learner.local.steps,
            local_rate=float(learner.local.learning_rate), **starts,
        )
        self.data = Data(*(_read_only(getattr(units, name)) for name in Data._fields))
        self.constants = _read_only(np.array([*problem.constants.values(), *problem.components], np.float32))
        # Vectors that cross a cache line are loaded at half the speed.
        raw = np.zeros(floats + LANES, np.float32)
        skip = -raw.ctypes.data // 4 % LANES
        self.memory = raw[skip : skip + floats]
        self.words = np.empty(WORDS, np.uint64)
        self.total = np.zeros(self.plan.size)
        signature = tuple(numba.typeof(argument) for argument in self._arguments(0))
        self.kernel = compiled_kernel(problem.algorithm.delta, "transition" if units.unit == "transition" else "trajectory", signature)

    def _arguments(self, instance: int) -> tuple:
        return (
            self.memory, self.layers, self.evaluations, self.plan, self.data, self.constants, self.streams.key, np.uint64(instance),
            self.words, self.total,
        )

    def train(self, instance: int) -> np.ndarray:
        """Flat parameters float32 [parameter_count] of one trained instance."""
        return self.train_from(initial_flat(self.problem, self.streams.generator(instance, 0, purposes.INITIALISE)), instance)

    def train_from(self, initial: np.ndarray, instance: int) -> np.ndarray:
        """The same from given initial parameters."""
        self.memory[:] = 0.0
        for layer, weight, bias in self._views(self.memory):
            end = layer["flat"] + weight.size
            weight[:] = initial[layer["flat"] : end].reshape(weight.shape)
            bias[:] = initial[end : end + len(bias)]
        self.kernel(*self._arguments(instance))
        return self._packed(self.memory)

    @property
    def last_sum(self) -> np.ndarray:
        """Flat copy of the last step's noisy sum, float64 [parameter_count]; where it never left float32, as it was rounded to that."""
        sums = self.memory[self.plan.sums :][: 2 * self.plan.size].view(np.float64)
        return self._packed(sums if sums.any() else self.memory[self.plan.gradient :]).astype(np.float64)

    def _packed(self, block: np.ndarray) -> np.ndarray:
        return np.concatenate([part.ravel() for _, *parts in self._views(block) for part in parts])

    def _views(self, block: np.ndarray):
        for layer in self.layers:
            weight = block[layer["weight"] :][: layer["outputs"] * layer["stride"]]
            yield layer, weight.reshape(layer["outputs"], layer["stride"])[:, : layer["inputs"]], block[layer["bias"] :][: layer["outputs"]]


def _read_only(array: np.ndarray) -> np.ndarray:
    """A contiguous view that cannot be written to: one type for the compiler, whoever owns the memory."""
    view = np.require(array, np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def clipped_sum(problem: Problem, flat: np.ndarray, units: Units, clip_norm: float) -> np.ndarray:
    """The kernel's clipped sum over all units without noise, float64 [parameter_count], at parameters `flat`: for tests."""
    mechanism = Mechanism(unit=units.unit, sample_rate=1.0, noise_multiplier=1.0, clip_norm=clip_norm, steps=1, normaliser=1.0)
    trainer = FusedTrainer(problem, mechanism, units, Streams(bytes(16)))
    trainer.plan = trainer.plan._replace(noise_scale=0.0)
    trainer.train_from(flat, 0)
    return trainer.last_sum
