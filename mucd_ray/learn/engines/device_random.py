"""The random streams of `streams` in torch, for engines whose data live on a GPU: the same Philox words, made where they are used.

Torch has no unsigned 64-bit product; words are int64 with the same bits, whose products wrap around as unsigned ones do.
The key and the step are tensors: a compiled function then holds neither the secret nor a number that changes in every step.
"""

import functools
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mucd_ray.learn.streams import LOG_SERIES, LOG_TWO, SQRT_HALF, Streams


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return (word & (1 << 64) - 1) - ((word >> 63 & 1) << 64)


# Philox4x64-10 (Salmon et al. 2011): multipliers and key increments.
_M0, _M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_W0, _W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_LOW = 0xFFFFFFFF


def _upper(a: Tensor) -> Tensor:
    """The upper 32 bits of unsigned words."""
    return (a >> 32) & _LOW


def _product(constant: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """(upper, lower) 64 bits of constant * b, from products of 32-bit halves, none of which overflows."""
    a0, a1 = constant & _LOW, constant >> 32
    b0, b1 = b & _LOW, _upper(b)
    # a1 * b0 may reach 2^64 - 2^33 + 1 and only wraps its sign; adding less than 2^32 does not carry out of 64 bits.
    middle, other = a1 * b0 + _upper(a0 * b0), a0 * b1
    carry = _upper((other & _LOW) + (middle & _LOW))
    return a1 * b1 + _upper(middle) + _upper(other) + carry, b * _signed(constant)


def key_on(streams: Streams, device: torch.device) -> Tensor:
    """The key of the streams, int64 [2]."""
    return torch.from_numpy(streams.key.view(np.int64)).to(device)


def counters(blocks: int, device: torch.device) -> Tensor:
    """The first counters of a stream, each of which gives four words: 1, 2, ..., int64 [blocks]. Made outside of what is compiled: the compiler would take
    their products for 32-bit indices."""
    return torch.arange(1, blocks + 1, device=device)


def philox(key: Tensor, counter: Tensor, purpose: int, step: Tensor, instances: Tensor) -> Tensor:
    """The first words of every instance's stream: int64 [P] -> int64 [P, 4 * blocks], bits of `Streams.generator(...).random_raw`.

    Args:
        key: int64 [2], see `key_on`.
        counter: see `counters`.
        step: int64 [1] for all instances, or [P].
    """
    shape = (len(instances), len(counter))
    c0 = counter.expand(shape)
    c1, c2 = torch.full_like(c0, _signed(purpose)), step[:, None].expand(shape)
    c3 = instances[:, None].expand(shape)
    for turn in range(10):
        upper0, lower0 = _product(_M0, c0)
        upper1, lower1 = _product(_M1, c2)
        # The key's words grow by their increments and wrap around.
        c0, c1, c2, c3 = upper1 ^ c1 ^ (key[0] + _signed(turn * _W0)), lower1, upper0 ^ c3 ^ (key[1] + _signed(turn * _W1)), lower0
    return torch.stack([c0, c1, c2, c3], -1).flatten(1)


def standard_normals(words: Tensor) -> Tensor:
    """`streams.standard_normals`: int64 [..., n] -> float32 [..., 2n]."""
    radius = (((words >> 24) & (1 << 40) - 1) + 1).to(torch.float32).mul_(2.0**-40).log_().mul_(-2.0).sqrt_()
    angle = (words & 0xFFFFFF).to(torch.float32).mul_(2.0 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)


def gaussian_noise(key: Tensor, count: int, purpose: int, step: Tensor, instances: Tensor) -> Tensor:
    """`streams.gaussian_noise` of these streams: float32 [P, count]."""
    return as_one_kernel(_normals, key.device)(key, counters(-(-count // 64) * 8, key.device), purpose, step, instances)[:, :count]


def _normals(key: Tensor, counter: Tensor, purpose: int, step: Tensor, instances: Tensor) -> Tensor:
    return standard_normals(philox(key, counter, purpose, step, instances))


def exponentials(words: Tensor) -> Tensor:
    """`streams.exponentials`: int64 -> float64. A compiler that fuses products and sums may round the last bit otherwise."""
    mantissa, exponent = torch.frexp((((words >> 11) & (1 << 53) - 1) + 1).to(torch.float64))
    s = (mantissa - SQRT_HALF) / (mantissa + SQRT_HALF)
    z = s * s
    series = LOG_SERIES[0] * z
    for coefficient in LOG_SERIES[1:]:
        series = (series + coefficient) * z
    series = (series + 2.0) * s
    return torch.clamp((53.5 - exponent.to(torch.float64)) * LOG_TWO - series, min=0.0)


def gaps(key: Tensor, blocks: int, purpose: int, step: Tensor, instances: Tensor, units: int | Tensor, scale: float | Tensor) -> Tensor:
    """Distances between the units that a Poisson sample takes, at least 1: int64 [P, 4 * blocks]; see `each_poisson_samples`."""
    return as_one_kernel(_gaps, key.device)(key, counters(blocks, key.device), purpose, step, instances, units, scale)


def _gaps(key: Tensor, counter: Tensor, purpose: int, step: Tensor, instances: Tensor, units: int | Tensor, scale: float | Tensor) -> Tensor:
    return torch.clamp(exponentials(philox(key, counter, purpose, step, instances)).mul_(scale), max=units).to(torch.int64) + 1


def as_one_kernel(function: Callable, device: torch.device) -> Callable:
    """`function`, hundreds of element-wise operations, as one kernel on a GPU where torch can compile one; otherwise as it is, which takes longer."""
    return function if device.type == "cpu" else _compiled(function)


@functools.cache
def _compiled(function: Callable) -> Callable:
    whole, checked, works = torch.compile(function, dynamic=False), set(), True

    def either(*arguments):
        nonlocal works
        shapes = tuple(tuple(value.shape) if isinstance(value, Tensor) else value for value in arguments)
        try:
            if works and shapes not in checked:
                # Randomness that is not what it should be voids a certificate, so every new kernel has to give what the operations give.
                difference = (whole(*arguments) - function(*arguments)).abs().max()
                works, _ = bool(difference <= 1e-5), checked.add(shapes)
                if not works:
                    print(f"mucd: compiled random numbers are wrong here (by {float(difference):.3g}) and not used: training takes longer", file=sys.stderr)
            if works:
                return whole(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # It needs Triton and a C compiler, and its errors have no class in common.
            works = False
            print(f"mucd: torch cannot compile the random numbers here ({type(error).__name__}): training takes longer", file=sys.stderr)
        return function(*arguments)

    return either


def scale_of_gaps(sample_rate: float) -> float:
    """-1 / log(1 - rate): a rate below 1 makes gaps of exponentials times this, rounded down, plus 1."""
    return -1.0 / math.log1p(-sample_rate)


def poisson_samples(key: Tensor, purpose: int, step: Tensor, instances: Tensor, units: int, sample_rate: float) -> tuple[Tensor, Tensor]:
    """`streams.poisson_sample` of every instance: (indices int64 [P, B], counts int64 [P]); indices beyond a count are 0."""
    if sample_rate >= 1.0:
        everything = torch.arange(units, device=instances.device).expand(len(instances), units)
        return everything, torch.full((len(instances),), units, device=instances.device)
    return each_poisson_samples(key, purpose, step, instances, units, scale_of_gaps(sample_rate), units * sample_rate)


def each_poisson_samples(
    key: Tensor, purpose: int, step: Tensor, instances: Tensor, units: int | Tensor, scale: float | Tensor, expected: float
) -> tuple[Tensor, Tensor]:
    """The same where every instance may have its own step [P], number of units [P, 1] and `scale_of_gaps` [P, 1], 0 for a rate of 1.

    `expected` is about the largest expected size; it changes speed, never the samples.
    """
    blocks = int((expected + 6.0 * math.sqrt(expected) + 19.0) / 4.0)
    while True:
        indices = gaps(key, blocks, purpose, step, instances, units, scale).cumsum(1) - 1
        if bool((indices[:, -1:] >= units).all()):
            break
        # Longer streams begin with the same words.
        blocks *= 2
    inside = indices < units
    counts = inside.sum(1)
    width = max(int(counts.max()), 1)
    return indices[:, :width].masked_fill(~inside[:, :width], 0), counts
