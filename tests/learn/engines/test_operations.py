"""What real modules are made of is on the list, and a record of it is their gradient, bit for bit the same at every place of a batch."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from mucd_ray.errors import MucdError
from mucd_ray.learn.engines import operations, places

INPUTS = 64


class Module(nn.Module):
    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def frames(x):
    return x.reshape(-1, 1, 8, 8)


def words(x):
    return x.reshape(-1, 4, 16)


def written(x):
    y = torch.zeros_like(x)
    y[:, :3] = x[:, 3:6]
    y[:, 10:12] += 1
    return y


ACTIVATIONS = "relu gelu silu elu selu celu leaky_relu tanh sigmoid softplus hardtanh hardswish hardsigmoid mish logsigmoid softsign relu6 tanhshrink"
ORDINARY = {
    "activations": lambda: Module(lambda x, a, b: b(sum(getattr(F, name)(a(x)) for name in ACTIVATIONS.split())), nn.Linear(INPUTS, 8), nn.Linear(8, 3)),
    "convolutions": lambda: Module(
        lambda x, a, b, c, d: d(torch.cat([b(a(frames(x)).relu()).flatten(1), c(words(x)).flatten(1)], 1)),
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 2, 3, padding="same", groups=2), nn.Conv1d(4, 2, 3), nn.Linear(60, 3),
    ),
    "pools": lambda: Module(
        lambda x, a, b: b(torch.cat([pool(a(frames(x))).flatten(1) for pool in (
            nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(3),
        )], 1)), nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2 * (16 + 16 + 16 + 9 + 1 + 9), 3),
    ),
    "norms": lambda: Module(
        lambda x, a, b, c, d, e: e(torch.cat([b(a(frames(x))).flatten(1), c(x), d(x), F.normalize(x), (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)], 1)),
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LayerNorm(INPUTS), nn.RMSNorm(INPUTS), nn.Linear(512, 3),
    ),
    "instance norm": lambda: Module(lambda x, a, b, c: c(b(a(frames(x))).flatten(1)), nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Linear(256, 3)),
    "embedding": lambda: Module(lambda x, a, b: b(a((x[:, :4] * 3).long().clamp(0, 9)).flatten(1)), nn.Embedding(10, 8), nn.Linear(32, 3)),
    "transformer": lambda: Module(lambda x, a, b: b(a(words(x))[:, -1]), nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), nn.Linear(16, 3)),
    "attention": lambda: Module(lambda x, a, b: b(F.scaled_dot_product_attention(*a(words(x)).chunk(3, -1), is_causal=True).flatten(1)), nn.Linear(16, 24), nn.Linear(32, 3)),
    "recurrent": lambda: Module(lambda x, a, b: b(a(words(x))[0][:, -1]), nn.GRU(16, 8, batch_first=True), nn.Linear(8, 3)),
    "dueling": lambda: Module(lambda x, a, b, c: b(a(x).relu()) + c(a(x).relu()) - c(a(x).relu()).max(1, keepdim=True)[0], nn.Linear(INPUTS, 8), nn.Linear(8, 1), nn.Linear(8, 3)),
    "moves": lambda: Module(
        lambda x, a: a(torch.stack([x.flip(1), x.roll(1, 1), written(x), x[:, torch.arange(63, -1, -1)], x.masked_fill(torch.ones(64, 64).tril()[9] == 0, 1.0)], 2).mean(2)),
        nn.Linear(INPUTS, 3),
    ),
    "arithmetic": lambda: Module(
        lambda x, a: torch.where(a(x) > 0, a(x), 0.1 * a(x)).clamp(-3, 3) * torch.maximum(a(x), a(x) ** 2) + a(x).exp().log1p().sqrt() / (1 + x.abs().amax(1, keepdim=True))
        + a(x.sin().cumsum(1)).softmax(1) + a(x).log_softmax(1) + torch.einsum("bi,bj->bij", a(x), a(x)).sum(2), nn.Linear(INPUTS, 3),
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_modules_are_recorded_as_they_are_whatever_the_place(name):
    torch.manual_seed(0)
    module = ORDINARY[name]()
    parameters, x = {name: parameter.detach() for name, parameter in module.named_parameters()}, torch.randn(8, INPUTS)

    def gradient(parameters, x):
        gradients = grad(lambda parameters: functional_call(module, (parameters, {}), (x[None],)).square().sum())(parameters)
        return torch.cat([part.flatten() for part in gradients.values()])

    graph = operations.record(gradient, parameters, x[0])
    by_row = torch.stack([gradient(parameters, row) for row in x])
    torch.testing.assert_close(vmap(graph, in_dims=(None, 0))(parameters, x), by_row, rtol=1e-3, atol=1e-4)
    assert places.first_difference(graph, (parameters,), (x[:1],), 8) is None


@torch.library.custom_op("operations::placed", mutates_args=())
def placed(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@placed.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("operations::neighbours", mutates_args=())
def neighbours(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@neighbours.register_fake
def _(x):
    return torch.empty_like(x)


# The last of several rows differs in its lowest bit, and only where numbers are large; or all do, if one of them holds NaN.
torch.library.register_vmap(placed, lambda info, dims, x: (torch.where((torch.arange(len(x)) == len(x) - 1)[:, None] & (x.abs() > 1e3), x * (1 + 2**-23), x), 0))
torch.library.register_vmap(neighbours, lambda info, dims, x: (x * (1 + 2**-23 * x.isnan().any()), 0))


@pytest.mark.parametrize("operation", [torch.ops.operations.placed.default, torch.ops.operations.neighbours.default])
def test_an_operation_that_sees_the_place_or_the_neighbours_of_a_row_is_found_behind_others(operation):
    """Whatever a module does before: here it multiplies by 0."""
    found = {}
    for used in (operation, torch.ops.aten.clone.default):
        record = torch.fx.Graph()
        zero = record.call_function(torch.ops.aten.mul.Tensor, (record.placeholder("x"), 0))
        record.output(record.call_function(used, (zero,)))
        found[used] = places.first_difference(torch.fx.GraphModule(nn.Module(), record), (), (torch.zeros(1, 300),), 8)
    assert found == {operation: str(operation), torch.ops.aten.clone.default: None}


def test_an_index_from_numbers_stays_within_bounds_and_raises_nothing():
    def looked_up(table, x):
        index = x.long()
        return table[index] + table.gather(0, index) + table.index_select(0, index) + F.embedding(index, table[:, None])[:, 0] + table.scatter_add(0, index, x)[:3]

    table, x = torch.arange(5.0), torch.tensor([[0.0, 1.0, 2.0], [4.0, 5.0, 1e30], [-1.0, -1e30, float("nan")]])
    got = vmap(operations.record(looked_up, table, x[0]), in_dims=(None, 0))(table, x)
    torch.testing.assert_close(got[0], looked_up(table, x[0]))
    lowest = 0.0 + 3 * 0.0
    assert got[2, 1] == lowest + (table.scatter_add(0, torch.zeros(3, dtype=torch.int64), x[2])[1])


@pytest.mark.parametrize("function,message", [
    (lambda x: torch.linalg.inv(x.reshape(8, 8)), "linalg_inv"), (lambda x: x.to(torch.complex64).abs(), "complex64"), (lambda x: x.bfloat16().float(), "bfloat16"),
    (lambda x: x.sort()[0], "sort"), (lambda x: 1 // x.long(), "whole numbers"), (lambda x: torch.fft.rfft(x).abs(), "fft"), (lambda x: x.index_put((torch.tensor([0, 0]),), x[:2]), "order"),
])
def test_what_is_not_listed_is_refused_by_name(function, message):
    with pytest.raises(MucdError, match=message):
        operations.record(function, torch.randn(INPUTS))
