"""Vector instructions for Numba kernels: a matrix product whose sums stay in registers, a transpose, sums of rows.

Written as LLVM instructions, because loops leave to the compiler what has to be kept in registers: this product runs at the
machine's full rate on matrices that lie in cache, twice the rate of BLAS calls at 64 x 64. No fast-math flag is set: every
operation is rounded as IEEE 754 says and every NaN survives. An element of a product is one chain of fused multiply-adds
in the order of the depth, so its bits depend on its own row and column and not on how the matrix was cut into tiles.

Matrices live in one flat float32 array, `memory`, and are named by the offset of their first element and their strides.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
# Rows and vectors of sums that a tile keeps in registers: at least 8 chains to hide the latency of a multiply-add, at most 16.
WIDE_ROWS, NARROW_ROWS, WIDEST = 4, 8, 4

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INT, _INT32 = ir.IntType(64), ir.IntType(32)
_ZEROS = ir.Constant(_FLOATS, [0.0] * LANES)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, LANES), lanes))


def _in_all_lanes(builder, value):
    return _shuffle(builder, builder.insert_element(_ZEROS, value, _INT32(0)), _ZEROS, [0] * LANES)


def _multiply_add(builder):
    signature = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")


# Lanes that two rows exchange in a round of a transpose: the second half of each block of the first row and the first half of the
# second row's, by half the size of a block.
_EXCHANGES = {
    half: (
        [lane if not lane & half else LANES + lane - half for lane in range(LANES)],
        [lane + half if not lane & half else LANES + lane for lane in range(LANES)],
    )
    for half in (8, 4, 2, 1)
}


def _addressing(context, builder, signature, memory):
    """Functions from an offset to the address of a float, and of a vector of floats, in `memory`."""
    base = context.make_array(signature.args[0])(context, builder, memory).data

    def scalar(offset):
        return builder.gep(base, [offset])

    return scalar, lambda offset: builder.bitcast(scalar(offset), _FLOATS.as_pointer())


@intrinsic
def address(typing, memory, offset):
    """Pointer to memory[offset]. Views made from it (`numba.carray`) are free, while a slice pays two atomic operations for its references."""
    signature = types.CPointer(types.float32)(memory, types.intp)

    def generate(context, builder, signature, arguments):
        scalar, _ = _addressing(context, builder, signature, arguments[0])
        return scalar(arguments[1])

    return signature, generate


@intrinsic
def address_of_doubles(typing, memory, offset):
    """The same for float64 numbers, each of which takes two places of memory."""
    signature = types.CPointer(types.float64)(memory, types.intp)

    def generate(context, builder, signature, arguments):
        scalar, _ = _addressing(context, builder, signature, arguments[0])
        return builder.bitcast(scalar(arguments[1]), ir.DoubleType().as_pointer())

    return signature, generate


# What becomes of a product: added to C; or plus a bias for each row, into C; that rectified; or kept where another matrix is positive.
# The last two add the squares of what they store to column sums, group by group of a tile's rows (see `clipping.ROUNDING_PER_TERM`).
ADD, BIAS, RECTIFY, WHERE_POSITIVE = range(4)


def _product_tile(rows: int, vectors: int):
    """One tile of a product: `rows` rows and `vectors` vectors of columns."""

    @intrinsic
    def tile(typing, memory, a, a_row, a_depth, b, b_depth, depth, c, c_row, finish, other, other_row, squares):
        signature = types.void(memory, *[types.intp] * 12)

        def generate(context, builder, signature, arguments):
            scalar, vector = _addressing(context, builder, signature, arguments[0])
            a, a_row, a_depth, b, b_depth, depth, c, c_row, finish, other, other_row, squares = arguments[1:]
            multiply_add = _multiply_add(builder)

            def element(start, row, stride, column=0):
                return builder.add(builder.add(start, builder.mul(stride, _INT(row))), _INT(column))

            sums = [[cgutils.alloca_once_value(builder, _ZEROS) for _ in range(vectors)] for _ in range(rows)]
            with cgutils.for_range(builder, depth) as loop:
                b_start = builder.add(b, builder.mul(loop.index, b_depth))
                a_start = builder.add(a, builder.mul(loop.index, a_depth))
                right = [builder.load(vector(builder.add(b_start, _INT(LANES * v))), align=4) for v in range(vectors)]
                for row in range(rows):
                    left = _in_all_lanes(builder, builder.load(scalar(element(a_start, row, a_row))))
                    for v in range(vectors):
                        total = builder.call(multiply_add, [left, right[v], builder.load(sums[row][v])])
                        builder.store(total, sums[row][v])

            def finished(kind, value, row, v):
                if kind == ADD:
                    return builder.fadd(builder.load(vector(element(c, row, c_row, LANES * v)), align=4), value)
                if kind == WHERE_POSITIVE:
                    return _where_positive(builder, value, builder.load(vector(element(other, row, other_row, LANES * v)), align=4))
                total = builder.fadd(value, _in_all_lanes(builder, builder.load(scalar(element(other, row, other_row)))))
                return total if kind == BIAS else _rectified(builder, total)

            blocks = {kind: builder.append_basic_block() for kind in (ADD, BIAS, RECTIFY, WHERE_POSITIVE)}
            end = builder.append_basic_block()
            switch = builder.switch(finish, blocks[ADD])
            for kind, block in blocks.items():
                if kind != ADD:
                    switch.add_case(_INT(kind), block)
                builder.position_at_end(block)
                for v in range(vectors):
                    group = _ZEROS
                    for row in range(rows):
                        value = finished(kind, builder.load(sums[row][v]), row, v)
                        builder.store(value, vector(element(c, row, c_row, LANES * v)), align=4)
                        if kind in (RECTIFY, WHERE_POSITIVE):
                            group = builder.call(multiply_add, [value, value, group])
                    if kind in (RECTIFY, WHERE_POSITIVE):
                        address = vector(builder.add(squares, _INT(LANES * v)))
                        builder.store(builder.fadd(builder.load(address, align=4), group), address, align=4)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return tile


# Comparisons are ordered: false for NaN, which therefore passes a ReLU and its derivative, and never passes a factor of zero.


def _rectified(builder, value):
    return builder.select(builder.fcmp_ordered("<", value, _ZEROS), _ZEROS, value)


def _where_positive(builder, value, activation):
    return builder.select(builder.fcmp_ordered("<=", activation, _ZEROS), _ZEROS, value)


def _scaled_or_cleared(builder, value, factor):
    return builder.select(builder.fcmp_ordered(">", factor, _ZEROS), builder.fmul(value, factor), _ZEROS)


_wide, _wide_single = _product_tile(WIDE_ROWS, 4), _product_tile(1, 4)
_three, _three_single = _product_tile(WIDE_ROWS, 3), _product_tile(1, 3)
_two, _two_single = _product_tile(NARROW_ROWS, 2), _product_tile(1, 2)
_one, _one_single = _product_tile(NARROW_ROWS, 1), _product_tile(1, 1)


def _product_columns(tile, single, height):
    """All rows of a product for one width of tile.

    Inlined by force, because functions that share a name, as these would, share a symbol in Numba's cache: kernels that two
    processes compiled and a third one loads would then call one another's.
    """

    @njit(forceinline=True)
    def columns(memory, a, a_row, a_depth, b, b_depth, depth, c, c_row, rows, finish, other, other_row, squares):
        full = rows - rows % height
        for row in range(0, full, height):
            tile(
                memory, a + row * a_row, a_row, a_depth, b, b_depth, depth, c + row * c_row, c_row,
                finish, other + row * other_row, other_row, squares,
            )
        for row in range(full, rows):
            single(
                memory, a + row * a_row, a_row, a_depth, b, b_depth, depth, c + row * c_row, c_row,
                finish, other + row * other_row, other_row, squares,
            )

    return columns


_columns_4 = _product_columns(_wide, _wide_single, WIDE_ROWS)
_columns_3 = _product_columns(_three, _three_single, WIDE_ROWS)
_columns_2 = _product_columns(_two, _two_single, NARROW_ROWS)
_columns_1 = _product_columns(_one, _one_single, NARROW_ROWS)


@njit
def multiply(memory, a, a_row, a_depth, b, b_depth, depth, c, c_row, rows, vectors, finish, other=0, other_row=0, squares=0):
    """C = finish(A B) with A [rows, depth], B [depth, LANES * vectors], C [rows, LANES * vectors].

    Element (i, k) of A is memory[a + i * a_row + k * a_depth]; rows of B and C are contiguous and b_depth, c_row apart. `other` has a
    number (BIAS, RECTIFY) or a row of vectors (WHERE_POSITIVE) for each row; `squares` are column sums [LANES * vectors].
    """
    for v in range(0, vectors, WIDEST):
        width, start, target, column = min(WIDEST, vectors - v), b + LANES * v, c + LANES * v, squares + LANES * v
        beside = other + LANES * v if finish == WHERE_POSITIVE else other
        if width == 4:
            _columns_4(memory, a, a_row, a_depth, start, b_depth, depth, target, c_row, rows, finish, beside, other_row, column)
        elif width == 3:
            _columns_3(memory, a, a_row, a_depth, start, b_depth, depth, target, c_row, rows, finish, beside, other_row, column)
        elif width == 2:
            _columns_2(memory, a, a_row, a_depth, start, b_depth, depth, target, c_row, rows, finish, beside, other_row, column)
        else:
            _columns_1(memory, a, a_row, a_depth, start, b_depth, depth, target, c_row, rows, finish, beside, other_row, column)


def _transpose_block(scaled: bool):
    """Transpose of LANES x LANES floats: four rounds that exchange the halves of pairs of rows; columns scaled or cleared if `scaled`."""

    @intrinsic
    def block(typing, memory, source, source_row, target, target_row, factors):
        signature = types.void(memory, *[types.intp] * 5)

        def generate(context, builder, signature, arguments):
            _, vector = _addressing(context, builder, signature, arguments[0])
            source, source_row, target, target_row, factors = arguments[1:]

            def row_of(start, stride, row):
                return vector(builder.add(start, builder.mul(stride, _INT(row))))

            rows = [builder.load(row_of(source, source_row, row), align=4) for row in range(LANES)]
            if scaled:
                factor = builder.load(vector(factors), align=4)
                rows = [_scaled_or_cleared(builder, row, factor) for row in rows]
            for half, (upper, lower) in _EXCHANGES.items():
                for row in range(LANES):
                    if not row & half:
                        a, b = rows[row], rows[row + half]
                        rows[row], rows[row + half] = _shuffle(builder, a, b, upper), _shuffle(builder, a, b, lower)
            for row in range(LANES):
                builder.store(rows[row], row_of(target, target_row, row), align=4)
            return context.get_dummy_value()

        return signature, generate

    return block


_plain_block, _scaled_block = _transpose_block(scaled=False), _transpose_block(scaled=True)


@njit
def transpose(memory, source, source_row, rows, columns, target, target_row):
    """Target [columns, rows] = transpose of source [rows, columns]; rows and columns are multiples of LANES."""
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            _plain_block(memory, source + row * source_row + column, source_row, target + column * target_row + row, target_row, 0)


@njit
def transpose_scaled(memory, source, source_row, rows, columns, target, target_row, factors):
    """The same with column i of source times the factor at factors + i; zero, whatever it holds, where that is zero."""
    for row in range(0, rows, LANES):
        for column in range(0, columns, LANES):
            _scaled_block(
                memory, source + row * source_row + column, source_row, target + column * target_row + row, target_row, factors + column
            )


@intrinsic
def scale_or_clear(typing, memory, values, values_row, rows, vectors, factors):
    """Values [rows, LANES * vectors] times the factors [LANES * vectors] of their columns; zero, whatever they hold, where that is zero."""
    signature = types.void(memory, *[types.intp] * 5)

    def generate(context, builder, signature, arguments):
        _, vector = _addressing(context, builder, signature, arguments[0])
        values, values_row, rows, vectors, factors = arguments[1:]
        with cgutils.for_range(builder, rows) as row:
            start = builder.add(values, builder.mul(row.index, values_row))
            with cgutils.for_range(builder, vectors) as v:
                column = builder.mul(v.index, _INT(LANES))
                factor = builder.load(vector(builder.add(factors, column)), align=4)
                target = vector(builder.add(start, column))
                builder.store(_scaled_or_cleared(builder, builder.load(target, align=4), factor), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_column_squares(typing, memory, source, source_row, rows, vectors, target):
    """target [LANES * vectors] += sum of squares over the first axis of source [rows, LANES * vectors], rows a multiple of 8.

    Groups of eight rows are summed first, which rounds less than one long chain.
    """
    signature = types.void(memory, *[types.intp] * 5)

    def generate(context, builder, signature, arguments):
        _, vector = _addressing(context, builder, signature, arguments[0])
        source, source_row, rows, vectors, target = arguments[1:]
        multiply_add = _multiply_add(builder)
        groups = builder.sdiv(rows, _INT(8))
        with cgutils.for_range(builder, vectors) as columns:
            column = builder.mul(columns.index, _INT(LANES))
            address = vector(builder.add(target, column))
            total = cgutils.alloca_once(builder, _FLOATS)
            builder.store(builder.load(address, align=4), total)
            with cgutils.for_range(builder, groups) as loop:
                start = builder.add(builder.mul(builder.mul(loop.index, _INT(8)), source_row), builder.add(source, column))
                group = _ZEROS
                for row in range(8):
                    value = builder.load(vector(builder.add(start, builder.mul(source_row, _INT(row)))), align=4)
                    group = builder.call(multiply_add, [value, value, group])
                builder.store(builder.fadd(builder.load(total), group), total)
            builder.store(builder.load(total), address, align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_row_sums(typing, memory, source, source_row, vectors, factors, target):
    """target [LANES] += sum over columns of source [LANES, LANES * vectors], scaled or cleared by the columns' factors.

    Vectors are added in turn, then by a transpose that adds.
    """
    signature = types.void(memory, *[types.intp] * 5)

    def generate(context, builder, signature, arguments):
        _, vector = _addressing(context, builder, signature, arguments[0])
        source, source_row, vectors, factors, target = arguments[1:]
        sums = [cgutils.alloca_once_value(builder, _ZEROS) for _ in range(LANES)]
        with cgutils.for_range(builder, vectors) as loop:
            offset = builder.mul(loop.index, _INT(LANES))
            factor = builder.load(vector(builder.add(factors, offset)), align=4)
            column = builder.add(source, offset)
            for row in range(LANES):
                part = builder.load(vector(builder.add(column, builder.mul(source_row, _INT(row)))), align=4)
                builder.store(builder.fadd(builder.load(sums[row]), _scaled_or_cleared(builder, part, factor)), sums[row])
        rows = [builder.load(total) for total in sums]
        for half, (upper, lower) in _EXCHANGES.items():
            rows = [
                builder.fadd(_shuffle(builder, a, b, upper), _shuffle(builder, a, b, lower))
                for a, b in zip(rows[:half], rows[half:])
            ]
        address = vector(target)
        builder.store(builder.fadd(builder.load(address, align=4), rows[0]), address, align=4)
        return context.get_dummy_value()

    return signature, generate


def _reinterpreted(source, target, llvm_target):
    """The bits of one number read as another type of the same size."""

    @intrinsic
    def reinterpret(typing, value):
        if value != source:
            return None
        return target(source), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], llvm_target)

    return reinterpret


float32_bits, bits_as_float32 = _reinterpreted(types.float32, types.int32, _INT32), _reinterpreted(types.int32, types.float32, ir.FloatType())
float64_bits, bits_as_float64 = _reinterpreted(types.float64, types.int64, _INT), _reinterpreted(types.int64, types.float64, ir.DoubleType())
