"""The random streams of `streams`, compiled: the same Philox words, bit for bit the same samples, the same normals to rounding."""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from mucd_ray.learn.algorithms.bc import exponential
from mucd_ray.learn.engines.fused.simd import bits_as_float32, bits_as_float64, float32_bits, float64_bits
from mucd_ray.learn.streams import LOG_SERIES, LOG_TWO, SQRT_HALF

# Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): multipliers and key increments.
_M0, _M1, _W0, _W1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157, 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
# Blocks of four words that are made at once, one in each 64-bit lane of a vector.
BLOCKS = 8
_WORDS, _INT = ir.VectorType(ir.IntType(64), BLOCKS), ir.IntType(64)

compiled = njit(error_model="numpy")


def _all_lanes(value: int) -> ir.Constant:
    return ir.Constant(_WORDS, [value] * BLOCKS)


def _product(builder, multiplier: int, x):
    """(upper, lower) 64 bits of multiplier * x from products of halves, which unlike a 128-bit product have vector instructions."""
    low, half = _all_lanes(0xFFFFFFFF), _all_lanes(32)
    m0, m1, x0, x1 = _all_lanes(multiplier & 0xFFFFFFFF), _all_lanes(multiplier >> 32), builder.and_(x, low), builder.lshr(x, half)
    lowest = builder.mul(m0, x0)
    middle = builder.add(builder.mul(m1, x0), builder.lshr(lowest, half))
    other = builder.add(builder.mul(m0, x1), builder.and_(middle, low))
    upper = builder.add(builder.add(builder.mul(m1, x1), builder.lshr(middle, half)), builder.lshr(other, half))
    return upper, builder.or_(builder.shl(other, half), builder.and_(lowest, low))


@intrinsic
def _philox(typing, words, start, key0, key1, counter, purpose, step, instance):
    """words[start : start + 4 * BLOCKS] from Philox at counters (counter, purpose, step, instance), (counter + 1, ...), ..."""
    signature = types.void(words, types.intp, *[types.uint64] * 6)

    def generate(context, builder, signature, arguments):
        words, start, *numbers = arguments
        base = builder.gep(context.make_array(signature.args[0])(context, builder, words).data, [start])

        def shuffle(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), BLOCKS), lanes))

        def in_all_lanes(value):
            return shuffle(builder.insert_element(_all_lanes(0), value, ir.IntType(32)(0)), _all_lanes(0), [0] * BLOCKS)

        k0, k1, c0, c1, c2, c3 = (in_all_lanes(number) for number in numbers)
        c0 = builder.add(c0, ir.Constant(_WORDS, list(range(BLOCKS))))
        for _ in range(10):
            (upper0, lower0), (upper1, lower1) = _product(builder, _M0, c0), _product(builder, _M1, c2)
            c0, c1, c2, c3 = builder.xor(builder.xor(upper1, c1), k0), lower1, builder.xor(builder.xor(upper0, c3), k1), lower0
            k0, k1 = builder.add(k0, _all_lanes(_W0)), builder.add(k1, _all_lanes(_W1))
        # From one vector for each word of a block to one block after the other.
        for half in range(2):
            pairs = [lane for i in range(4) for lane in (4 * half + i, BLOCKS + 4 * half + i)]
            first, second = shuffle(c0, c1, pairs), shuffle(c2, c3, pairs)
            for quarter in range(2):
                lanes = [4 * quarter + lane for lane in (0, 1, 8, 9, 2, 3, 10, 11)]
                target = builder.gep(base, [_INT((2 * half + quarter) * BLOCKS)])
                builder.store(shuffle(first, second, lanes), builder.bitcast(target, _WORDS.as_pointer()), align=8)
        return context.get_dummy_value()

    return signature, generate


@compiled
def philox(key, first, purpose, step, instance, words):
    """Fill `words` uint64 [32 n] with Philox blocks at counters (first, purpose, step, instance), (first + 1, ...), ..."""
    for block in range(0, len(words) // 4, BLOCKS):
        _philox(words, 4 * block, key[0], key[1], np.uint64(first + block), purpose, step, instance)


@compiled
def exponentials(words, out):
    """`streams.exponentials`: the same operations in the same order, hence the same bits."""
    for i in range(len(words)):
        bits = float64_bits(np.float64((words[i] >> np.uint64(11)) + np.uint64(1)))
        exponent = np.float64((bits >> 52) - 1022)
        mantissa = bits_as_float64((bits & 0xFFFFFFFFFFFFF) | 0x3FE0000000000000)
        s = (mantissa - SQRT_HALF) / (mantissa + SQRT_HALF)
        z = s * s
        series = LOG_SERIES[0] * z + LOG_SERIES[1]
        series = series * z + LOG_SERIES[2]
        series = series * z + LOG_SERIES[3]
        series = series * z + LOG_SERIES[4]
        series = series * z + LOG_SERIES[5]
        series = series * z + LOG_SERIES[6]
        out[i] = max((53.5 - exponent) * LOG_TWO - (series * z + 2.0) * s, 0.0)


@compiled
def poisson_sample(key, purpose, step, instance, units, sample_rate, sample):
    """`streams.poisson_sample` on one stream -> (sample, size): indices sample[:size]; a larger array replaces one that overflows."""
    if sample_rate >= 1.0:
        if len(sample) < units:
            sample = np.empty(units, np.int64)
        for i in range(units):
            sample[i] = i
        return sample, units
    scale = -1.0 / math.log1p(-sample_rate)
    expected = units * sample_rate
    chunk = 32 * int((expected + 6.0 * math.sqrt(expected) + 47.0) / 32.0)
    words, gaps = np.empty(chunk, np.uint64), np.empty(chunk, np.float64)
    last, size, first = -1, 0, 1
    while True:
        philox(key, first, purpose, step, instance, words)
        first += chunk // 4
        exponentials(words, gaps)
        if len(sample) < size + chunk:
            longer = np.empty(2 * (size + chunk), np.int64)
            for i in range(size):
                longer[i] = sample[i]
            sample = longer
        for i in range(chunk):
            last += np.int64(min(gaps[i] * scale, np.float64(units))) + 1
            if last >= units:
                return sample, size
            sample[size] = last
            size += 1


@compiled
def uniform(word):
    """`streams.uniform`."""
    return np.float64(word >> np.uint64(11)) * 2.0**-53


_STEP, _QUARTER, _PER_QUARTER = np.float32(2.0 * np.pi * 2.0**-24), np.float32(2.0**22), np.float32(2.0**-22)


@compiled
def standard_normals(words, cosines, sines):
    """`streams.standard_normals` in its two halves: float32 cosines [n] and sines [n] from words uint64 [n].

    Logarithm, sine and cosine are those of Cephes' logf, sinf and cosf.
    """
    # A loop of its own, since 64-bit words would halve the lanes of all that follows.
    for i in range(len(words)):
        cosines[i] = np.float32((words[i] >> np.uint64(24)) + np.uint64(1))
        sines[i] = np.float32(words[i] & np.uint64(0xFFFFFF))
    for i in range(len(words)):
        bits, angle = float32_bits(cosines[i]), sines[i]
        # Logarithm of radius * 2^-40 = m * 2^e with m in [sqrt(1/2), sqrt(2)).
        e = np.float32(np.int32((bits >> 23) - (126 + 40)))
        mantissa_bits = np.int32((bits & 0x7FFFFF) | 0x3F000000)
        m = bits_as_float32(mantissa_bits)
        small = m < np.float32(SQRT_HALF)
        e = e - np.float32(1.0) if small else e
        x = m + m - np.float32(1.0) if small else m - np.float32(1.0)
        z = x * x
        y = np.float32(7.0376836292e-2)
        y = y * x + np.float32(-1.1514610310e-1)
        y = y * x + np.float32(1.1676998740e-1)
        y = y * x + np.float32(-1.2420140846e-1)
        y = y * x + np.float32(1.4249322787e-1)
        y = y * x + np.float32(-1.6668057665e-1)
        y = y * x + np.float32(2.0000714765e-1)
        y = y * x + np.float32(-2.4999993993e-1)
        y = y * x + np.float32(3.3333331174e-1)
        y = y * x * z
        y = y + e * np.float32(-2.12194440e-4) - np.float32(0.5) * z
        log = x + y + e * np.float32(0.693359375)
        radius = np.float32(math.sqrt(np.float32(-2.0) * log))
        # The angle is a whole number of 2^-24 turns: exact quarter turns, and the rest in [-pi/4, pi/4).
        quarter = np.int32(angle * _PER_QUARTER + np.float32(0.5))
        t = (angle - np.float32(quarter) * _QUARTER) * _STEP
        z = t * t
        sine = np.float32(-1.9515295891e-4)
        sine = sine * z + np.float32(8.3321608736e-3)
        sine = sine * z + np.float32(-1.6666654611e-1)
        sine = sine * z * t + t
        cosine = np.float32(2.443315711809948e-5)
        cosine = cosine * z + np.float32(-1.388731625493765e-3)
        cosine = cosine * z + np.float32(4.166664568298827e-2)
        cosine = cosine * z * z - np.float32(0.5) * z + np.float32(1.0)
        swapped = np.int32(quarter & 1) != 0
        along = float32_bits(sine if swapped else cosine)
        across = float32_bits(cosine if swapped else sine)
        # The signs of the quadrant: cosine is negative in quarters 1 and 2, sine in 2 and 3.
        along = bits_as_float32(np.int32(along ^ np.int32(((quarter + 1) & 2) << 30)))
        across = bits_as_float32(np.int32(across ^ np.int32((quarter & 2) << 30)))
        cosines[i] = radius * along
        sines[i] = radius * across


@overload(exponential)
def _exponential(x):
    """exp in float32 to 1e-7, for x <= 0, without a call: Cephes' expf. NaN stays NaN."""

    def compute(x):
        x = np.float32(x)
        # A comparison with NaN is false; converting it to an integer would be undefined.
        bounded = x if x > np.float32(-87.0) else np.float32(-87.0)
        n = np.int32(bounded * np.float32(1.44269504088896341) - np.float32(0.5))
        r = bounded - np.float32(n) * np.float32(0.693359375) - np.float32(n) * np.float32(-2.12194440e-4)
        y = np.float32(1.9875691500e-4)
        y = y * r + np.float32(1.3981999507e-3)
        y = y * r + np.float32(8.3334519073e-3)
        y = y * r + np.float32(4.1665795894e-2)
        y = y * r + np.float32(1.6666665459e-1)
        y = y * r + np.float32(5.0000001201e-1)
        y = y * r * r + r + np.float32(1.0)
        return y * bits_as_float32(np.int32((n + 127) << 23)) if x == x else x

    return compute
