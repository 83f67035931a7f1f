"""Whether a recorded function gives a row the same bits at every place of a batch, whatever stands at the other places.

Kernels round differently at the edges of their tiles, and in batches of other sizes. A module can multiply such a difference until one more
unit in the data, by which the others move up, changes the vectors of all of them. At a fixed number of rows, the order in which a kernel adds
up a row does not depend on numbers. So it is enough to see, operation by operation, that numbers of all kinds give the same bits at every
place; what is the same at every place before an operation is the same after it. Nothing of a module can hide from this: it does not
choose the numbers.
"""

import zlib

import numpy as np
import torch
from torch import Tensor, fx
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

# Normal numbers, numbers of all sizes, and some that are odd.
KINDS = 3
ODD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38])


def first_difference(graph: fx.GraphModule, shared: tuple, row: tuple, rows: int) -> str | None:
    """The first operation of a record whose results depend on a row's place or its neighbours, among so many rows; or None.

    Args:
        shared: the record's arguments that are the same for all rows.
        row: its other arguments, with a leading dimension of 1: their numbers do not matter.
        rows: at least `KINDS`.
    """
    looking = _Places(graph)
    # By turns, each kind in each place; and without neighbours of other kinds.
    for looking.kinds in (*((torch.arange(rows) + shift) % KINDS for shift in range(KINDS)), torch.zeros(rows, dtype=torch.int64)):
        args = tree_map(lambda one: made_up(one.shape[1:], 1)[looking.kinds].to(one.dtype) if one.is_floating_point() else one.repeat(rows, *[1] * (one.ndim - 1)), row)
        vmap(lambda *args: looking.run(*tree_leaves((shared, args))), in_dims=0)(*args)
    return looking.differs


class _Places(fx.Interpreter):
    """Runs a record under `vmap` on at least `KINDS` rows; new numbers take the place of what each operation gives.

    Attributes:
        kinds: those of the rows, at first 0, 1, 2, 0 ...
        differs: the first operation that gave rows of one kind different bits, or None.
    """

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.kinds = torch.zeros(0, dtype=torch.int64)
        self.differs: str | None = None
        self.first: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if node.op == "call_function" and self.differs is None:
            for number, tensor in enumerate(tree_leaves(result)):
                if isinstance(tensor, Tensor) and is_batchedtensor(tensor):
                    self._look(node, number, get_unwrapped(tensor).movedim(maybe_get_bdim(tensor), 0))
        return result

    def _look(self, node: fx.Node, number: int, rows: Tensor) -> None:
        key = f"{node.name} {number}"
        if key not in self.first:
            self.first[key] = rows[:KINDS].clone()
        new = made_up(rows.shape[1:], zlib.crc32(key.encode())).to(rows.dtype)
        # What has strides of 0 cannot be written to: it is a view of what has new numbers already.
        written = rows.is_floating_point() and all(stride or size < 2 for size, stride in zip(rows.shape, rows.stride()))
        for kind in range(KINDS):
            which = torch.nonzero(self.kinds == kind)[:, 0]
            if not len(which):
                continue
            of_kind = rows[which[0] :: KINDS] if len(which) < len(rows) else rows
            if not same_bits(of_kind, self.first[key][kind]):
                self.differs = str(node.target)
            if written:
                of_kind.copy_(new[kind])


def made_up(shape: tuple[int, ...], seed: int) -> Tensor:
    """[KINDS, *shape], float64."""
    rng = np.random.default_rng(seed)
    plain, wide, odd = rng.standard_normal((KINDS, *shape))
    return torch.from_numpy(np.stack([plain, wide * np.exp(rng.uniform(-40, 40, shape)), np.where(rng.random(shape) < 0.05, rng.choice(ODD, shape), odd)]))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether numbers are equal with the signs of their zeros. All NaN are the same: no allowed operation shows their bits."""
    if not a.is_floating_point():
        return bool((a == b).all())
    bits = torch.int32 if a.dtype == torch.float32 else torch.int64
    same = a.view(bits) == b.view(bits)
    return bool(same.all()) or bool((same | (a.isnan() & b.isnan())).all())
