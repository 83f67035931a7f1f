"""The torch engine's step as one CUDA graph that is replayed. A step of small networks is thousands of launches, each shorter than its way from Python.

A graph has fixed shapes, and nothing in it is looked at. So batches are padded to a width that no sample of the block is likely to exceed,
and the device keeps whether one did: then, and where a step cannot be captured, the block is trained again without a graph, from the same streams.
Nothing is ever cut off, and which way was taken changes results by rounding alone.
"""

import sys
from collections.abc import Callable, Sequence

import torch
from scipy.stats import binom
from torch import Tensor

from mucd_ray.learn import streams as purposes
from mucd_ray.learn.engines import device_random
from mucd_ray.learn.engines.stacked import Batch, Block, DrawsOnDevice, UnitsOnDevice, train_stacked
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

# Steps that run before the capture, so that memory is taken and libraries are loaded.
WARM_UP = 3
# Replays between two moments at which the host waits for the device.
WAIT_EVERY = 64
# Probability with which some sample of a block is wider than its graph.
TOO_WIDE = 1e-4


class Uncaptured(Exception):
    """A step that does something no graph can hold."""


def train_captured(
    problem: Problem, mechanism: NoisySteps, units: UnitsOnDevice, instances: Sequence[int], streams: Streams, progress: Callable[[], None] | None = None
) -> Tensor:
    """As `train_stacked`, of transitions on a GPU."""
    width = sample_width(len(units), mechanism.sample_rate, len(instances) * mechanism.steps)
    draws = DrawsOfFixedWidth(streams, instances, units, mechanism.sample_rate, width)
    block = Block(problem, mechanism, units, instances, streams, draws)
    advance = _replayed(block)
    try:
        for step in range(mechanism.steps):
            advance(step)
            block.average(step)
            if step % WAIT_EVERY == 0:
                torch.cuda.current_stream().synchronize()
            if progress is not None:
                progress()
    except Uncaptured as error:
        print(f"mucd: a training step cannot be captured as a graph ({error}): training without one, which takes longer", file=sys.stderr)
    else:
        if not bool(draws.exceeded):
            return block.result()
    return train_stacked(problem, mechanism, units, instances, streams, progress)


def _replayed(block: Block) -> Callable[[int], None]:
    """A function that takes one step; to be called with 0, 1, ... The first few run as they are written, then a graph is captured and replayed."""
    step, graph = torch.zeros((), dtype=torch.int64, device=block.parameters.device), torch.cuda.CUDAGraph()
    # Only what is beside the default stream can be captured, and what was first used there.
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()

    def move() -> None:
        block.move(step)
        step.add_(1)

    def advance(number: int) -> None:
        if number < WARM_UP:
            side.wait_stream(current)
            with torch.cuda.stream(side):
                move()
            current.wait_stream(side)
            return
        if number == WARM_UP:
            try:
                with torch.cuda.graph(graph):
                    move()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise Uncaptured(str(error).splitlines()[0]) from error
        graph.replay()

    return advance


def sample_width(units: int, sample_rate: float, samples: int) -> int:
    """Units, a multiple of 32, that the largest of so many Poisson samples exceeds with probability at most TOO_WIDE."""
    if sample_rate >= 1.0:
        return units
    return min(-(-units // 32), int(binom.isf(TOO_WIDE / samples, units, sample_rate)) // 32 + 1) * 32


class DrawsOfFixedWidth(DrawsOnDevice):
    """The same draws, padded to `width` rows whatever was drawn.

    Attributes:
        exceeded: bool [] on the device: whether any sample had more than `width` rows.
    """

    def __init__(self, streams: Streams, instances: Sequence[int], units: UnitsOnDevice, sample_rate: float, width: int):
        super().__init__(streams, instances, units, sample_rate, cap=1)
        self.width, self.exceeded = width, torch.zeros((), dtype=torch.bool, device=units.device)

    def transitions(self, step: int | Tensor) -> Batch:
        if self.sample_rate >= 1.0:
            return super().transitions(step)
        size = len(self.units)
        # One gap more than there are rows reaches beyond the last unit.
        gaps = device_random.gaps(self.key, self.width // 4 + 1, purposes.SAMPLE, self._on_device(step), self.numbers, size, device_random.scale_of_gaps(self.sample_rate))
        indices = gaps.cumsum(1) - 1
        inside = indices < size
        counts = inside.sum(1)
        self.exceeded.logical_or_((counts > self.width).any())
        return self.units.take(indices[:, : self.width].masked_fill(~inside[:, : self.width], 0), counts)

    def noise(self, step: int | Tensor, count: int) -> Tensor:
        return device_random.gaussian_noise(self.key, count, purposes.NOISE, self._on_device(step), self.numbers)

