"""Which operations a recorded module may consist of: all others are refused by name.

An operation is here if it computes from its arguments alone, reads and writes within them whatever numbers they hold, and raises an
exception for no numbers. torch has some two thousand operations, of which many trust their caller. Derivatives are recorded as what they
are made of, so that few need a name.
"""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mucd_ray.errors import MucdError

aten = torch.ops.aten

# Nothing is computed; shapes are checked at every call.
MOVES = """
    alias cat clone constant_pad_nd detach diagonal expand flip permute repeat roll select select_scatter slice slice_scatter
    split split_with_sizes squeeze stack t transpose tril triu unbind unfold unsqueeze view _to_copy _unsafe_view
"""
# Numbers that are none of the data's, all of them written.
CONSTANTS = "arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor zeros zeros_like"
# One number from those at the same place.
ELEMENTWISE = """
    abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp clamp_max
    clamp_min cos cosh div elu eq erf erfc exp exp2 expm1 floor fmax fmin fmod ge gelu gt hardshrink hardshrink_backward hardsigmoid
    hardswish hardtanh hypot isinf isnan le leaky_relu lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor
    lt masked_fill maximum minimum mul nan_to_num ne neg pow _prelu_kernel reciprocal relu remainder round rsqrt rsub sgn sigmoid sign silu
    sin sinh softplus softshrink softshrink_backward sqrt square sub tan tanh trunc where
"""
# Of all numbers along given dimensions.
REDUCTIONS = """
    all amax amin any argmax argmin cumprod cumsum linalg_vector_norm logcumsumexp logsumexp _log_softmax max mean min prod _softmax std sum
    var var_mean
"""
# Products, and layers whose sizes torch compares.
LAYERS = """
    addmm baddbmm bmm dot mm mv convolution native_group_norm native_layer_norm avg_pool2d avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices
"""
NAMES = {f"aten::{name}" for group in (MOVES, CONSTANTS, ELEMENTWISE, REDUCTIONS, LAYERS) for name in group.split()}
# A view of the bits would show those of NaN, which are not the same at every place of a batch.
EXCEPT = {aten.view.dtype}
# Indices may come from numbers of the data: (position of the indices, of their dimension or None for the first ones, whether they may be
# negative). `guard_indices` keeps them within bounds, so that none raises or reaches a row that lies beside its own.
INDEXED = {
    aten.embedding.default: (1, None, False), aten.gather.default: (2, 1, False), aten.index_select.default: (2, 1, False),
    aten.scatter.src: (2, 1, False), aten.scatter.value: (2, 1, False), aten.scatter_add.default: (2, 1, False),
    aten.index.Tensor: (1, None, True), aten.index_put.default: (1, None, True),
}
# These trust their caller: the sizes must be those of a layer that could have been, and where positions in memory are among the arguments,
# such a layer must have made them. (the layer, its arguments among theirs, position of the positions)
DERIVATIVES: dict[Any, tuple[Any, Callable, int | None]] = {
    aten.convolution_backward.default: (aten.convolution.default, lambda a: (*a[1:3], None, *a[4:10]), None),
    aten.avg_pool2d_backward.default: (aten.avg_pool2d.default, lambda a: a[1:], None),
    aten.avg_pool3d_backward.default: (aten.avg_pool3d.default, lambda a: a[1:], None),
    aten._adaptive_avg_pool2d_backward.default: (aten._adaptive_avg_pool2d.default, lambda a: (a[1], a[0].shape[-2:]), None),
    aten._adaptive_avg_pool3d_backward.default: (aten._adaptive_avg_pool3d.default, lambda a: (a[1], a[0].shape[-3:]), None),
    aten.max_pool2d_with_indices_backward.default: (aten.max_pool2d_with_indices.default, lambda a: a[1:7], 7),
    aten.max_pool3d_with_indices_backward.default: (aten.max_pool3d_with_indices.default, lambda a: a[1:7], 7),
    aten.adaptive_max_pool2d_backward.default: (aten.adaptive_max_pool2d.default, lambda a: (a[1], a[0].shape[-2:]), 2),
    aten.adaptive_max_pool3d_backward.default: (aten.adaptive_max_pool3d.default, lambda a: (a[1], a[0].shape[-3:]), 2),
}
TYPES = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}


def _copy(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(into.dtype).expand(into.shape).clone()


def _zeros(shape, *, dtype=None, **kwargs) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype)


def _zeros_by_order(shape, order, *, dtype=None, **kwargs) -> Tensor:
    return torch.zeros(tuple(shape), dtype=dtype)


def _zeros_like(tensor, shape=None, stride=None, *, dtype=None, **kwargs) -> Tensor:
    return torch.zeros(tensor.shape if shape is None else tuple(shape), dtype=dtype or tensor.dtype)


# Operations and what they are recorded as. Memory that nobody wrote holds what other rows left there: here it holds zeros. What follows from
# a number in the module's code torch would compute while it records (`lift_fresh` tells it that it is one).
MADE_OF = {
    **core_aten_decompositions(), **get_decompositions([aten.native_batch_norm]), aten.copy.default: _copy,
    aten.empty.memory_format: _zeros, aten.empty_permuted.default: _zeros_by_order, aten.empty_strided.default: _zeros_by_order,
    aten.empty_like.default: _zeros_like, aten.new_empty.default: _zeros_like, aten.new_empty_strided.default: _zeros_like,
    aten.lift_fresh.default: torch.clone, aten.lift_fresh_copy.default: torch.clone,
}


class _NoReading(TorchFunctionMode):
    """Refuses what ends the process, without a word, where operations are recorded."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.tolist:
            raise MucdError("the module's Python code reads values (`.tolist()`): use torch's operations")
        return function(*args, **kwargs or {})


def record(function: Callable, *args) -> fx.GraphModule:
    """A function's operations on tensors of these shapes, all of them allowed; their numbers do not matter.

    Raises:
        MucdError: an operation is not; or whatever the function and the recorder raise.
    """
    # Without a rule for shapes torch would run the operation on zeros.
    shapes = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)
    args = tree_map_only(Tensor, lambda tensor: shapes.from_tensor(tensor.clone()), args)
    # Attention in one operation is random by its schema, and has no rule for vmap.
    with _NoReading(), sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(functionalize(function), tracing_mode="fake", decomposition_table=MADE_OF)(*args)
    check_operations(graph)
    guard_indices(graph)
    return graph


def check_name(target) -> None:
    """Refuse whatever has not its name above, and say why."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        raise MucdError(f"the module uses {target}, which may run any code on the data: use torch's own operations")
    if torch.Tag.nondeterministic_seeded in target.tags or target._schema.name.startswith("prims::inductor_"):
        raise MucdError(f"the module is random ({target}): remove layers such as dropout, whose chance does not come from the run's secret")
    if target._schema.is_mutable:
        raise MucdError(f"the module changes its parameters or other tensors in place ({target}), a state that would carry data from step to step without noise: remove this")
    if target._schema.name in NAMES and target not in EXCEPT or target in INDEXED or target in DERIVATIVES:
        return
    raise MucdError(f"the module uses {target}, which is not among the operations known to stay within one row whatever it holds: use others (docs/soundness.md)")


def check_operations(graph: fx.GraphModule) -> None:
    """Refuse a record of operations that are not known to be functions of their arguments, safe and silent whatever numbers these hold.

    Args:
        graph: recorded on fake tensors; loses operations whose results are not used.
    """
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr") and node.target is not operator.getitem:
            check_name(node.target)
    graph.graph.eliminate_dead_code()
    nodes = set(graph.graph.nodes)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        for value in (leaf for leaf in tree_leaves(node.meta["val"]) if leaf is not None):
            if value.dtype not in TYPES or value.layout != torch.strided or value.device.type != "cpu":
                raise MucdError(f"the module computes with {value.dtype}, {value.layout} on {value.device} ({node.target}): use {', '.join(map(str, sorted(TYPES, key=str)))} in memory")
        if node.target in DERIVATIVES:
            _check_derivative(node)
        # Whole numbers divided by zero raise an exception.
        if node.target._schema.name in ("aten::remainder", "aten::fmod", "aten::div") and not node.meta["val"].is_floating_point() and (node.args[1] in nodes or not node.args[1]):
            raise MucdError(f"the module divides whole numbers ({node.target}): one row with a zero would end training; divide floating point numbers")
        if node.target is aten.index_put.default and (len(node.args) < 4 or not node.args[3]):
            raise MucdError("the module writes to indices (`x[index] = y`): where two are the same, no order is certain; use torch.where or torch.scatter_add")


def _check_derivative(node: fx.Node) -> None:
    layer, arguments, positions = DERIVATIVES[node.target]
    values: Any = fx.map_arg(node.args, lambda argument: argument.meta["val"])
    try:
        with values[0].fake_mode:
            result = layer(*arguments(values))
        fits = (result[0] if isinstance(result, tuple) else result).shape == values[0].shape
    except Exception:
        fits = False
    if positions is not None:
        source: Any = node.args[positions]
        while source.target in (aten.detach.default, aten.alias.default):
            source = source.args[0]
        made = source.target is operator.getitem and source.args[1] == 1 and source.args[0].target is layer
        fits = fits and made and source.args[0].args[0].meta["val"].shape == values[1].shape and values[positions].shape == values[0].shape
    if not fits:
        raise MucdError(f"the module calls {node.target} on sizes or positions that are not those of {layer}: it would read or write beyond its own row; let torch differentiate")


def guard_indices(graph: fx.GraphModule) -> None:
    """Hold every index within the bounds of its dimension: one beyond means the first or the last one."""

    def within(index: fx.Node | None, node: fx.Node, dimension: int, negative: bool) -> fx.Node | None:
        if index is None:
            return None
        size = cast(fx.Node, node.args[0]).meta["val"].shape[dimension]
        if index.meta["val"].dtype not in (torch.int64, torch.int32) or not size:
            raise MucdError(f"the module chooses by a mask, or from nothing ({node.target}): use torch.where")
        with graph.graph.inserting_before(node):
            guarded = graph.graph.call_function(aten.clamp.default, (index, -size if negative else 0, size - 1))
        guarded.meta["val"] = index.meta["val"]
        return guarded

    for node in graph.graph.nodes:
        if node.target is aten.slice_scatter.default and len(node.args) > 4:
            # vmap adds to an end that stands for all.
            node.args = (*node.args[:4], min(node.args[4], node.args[0].meta["val"].shape[node.args[2]]), *node.args[5:])
        if node.target not in INDEXED:
            continue
        position, dimension, negative = INDEXED[node.target]
        arguments, indices = list(node.args), node.args[position]
        if dimension is not None or node.target is aten.embedding.default:
            arguments[position] = within(indices, node, 0 if dimension is None else node.args[dimension], negative)
        else:
            arguments[position] = [within(index, node, place, negative) for place, index in enumerate(indices)]
        node.args = tuple(arguments)
    graph.recompile()
