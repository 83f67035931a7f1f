"""Modules that would carry a unit past its clip norm, if the engine for any `nn.Module` let them: whatever is trained, one unit moves the
released parameters by at most C; what is not a function of one row is refused."""

import copy
import random

import numpy as np
import pytest
import torch
import torch._inductor.inductor_prims
from problems import STREAMS, changed, joined, made_up, problem, take
from torch import nn
from torch.nn.utils import parameters_to_vector

from mucd_ray.errors import MucdError
from mucd_ray.learn.engines.modules import RowGradients, clipped_sum, train_opacus
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

INPUTS, OUTPUTS = 100, 2
SEEN = []


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(INPUTS, OUTPUTS)
        self.register_buffer("mean", torch.zeros(INPUTS))
        self.frozen = nn.Parameter(torch.ones(INPUTS), requires_grad=False)
        self.plain, self.calls = torch.zeros(INPUTS), 0

    def forward(self, x):
        return self.lin(x)


class Entities(nn.Module):
    """Each row is 25 entities that share a layer: folded into the batch they look like 25 units."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, OUTPUTS)

    def forward(self, x):
        return self.lin(x.reshape(-1, 4)).reshape(-1, 25, OUTPUTS).sum(1)


class Residual(nn.Module):
    """No layer that Opacus has a rule for: a parameter of its own, a frozen one, norms of a row's own values."""

    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.zeros(INPUTS, 16)), nn.Parameter(torch.zeros(16), requires_grad=False)
        self.norm, self.groups, self.head = nn.LayerNorm(16), nn.GroupNorm(4, 16), nn.Linear(16, OUTPUTS)

    def forward(self, x):
        x = self.norm(x @ self.weight) * self.scale
        return self.head(x + torch.where(x > 0, x, 0.1 * x).tanh() + self.groups(x))


class Reaching(Linear):
    """Multiplies its outputs by what it reads past the end of its row, in the gradient alone."""

    def forward(self, x):
        beyond = torch.segment_reduce(x[0].contiguous(), "sum", lengths=torch.tensor([300]), unsafe=True)
        beyond = torch.nan_to_num(beyond.detach(), 0, 0, 0).clamp(-1e3, 1e3).sum()
        outputs = self.lin(x)
        return outputs + outputs * beyond - (outputs * beyond).detach()


class WritesAnywhere(Linear):
    """The derivative of a pooling believes the positions that it is given: where it ran, the process ended."""

    def forward(self, x):
        frames = x.reshape(len(x), 1, 10, 10)
        pooled = nn.functional.max_pool2d(frames, 2)
        positions = torch.full(pooled.shape, 10**12)
        return self.lin(torch.ops.aten.max_pool2d_with_indices_backward(pooled, frames, [2, 2], [2, 2], [0, 0], [1, 1], False, positions).flatten(1))


class WritesOnceRecorded(Linear):
    """The same of numbers in its code, which torch computes while it records."""

    def forward(self, x):
        one, position = torch.tensor([[[1.0]]]), torch.tensor([[[10**12]]])
        return self.lin(x) + torch.ops.aten.max_pool2d_with_indices_backward(one, one, [1, 1], [1, 1], [0, 0], [1, 1], False, position).sum()


class PositionsOfAnother(Linear):
    """Positions of a larger pooling."""

    def forward(self, x):
        frames = x.reshape(len(x), 1, 10, 10)
        positions = nn.functional.adaptive_max_pool2d(frames, 2, return_indices=True)[1]
        return self.lin(x) + torch.ops.aten.adaptive_max_pool2d_backward(frames[:, :, :2, :2], frames[:, :, :3, :3], positions).sum((1, 2, 3))[:, None]


class WrongSizes(Linear):
    def forward(self, x):
        frames = x.reshape(len(x), 1, 10, 10)
        return self.lin(x) + torch.ops.aten._adaptive_avg_pool2d_backward(torch.ones(len(x), 9, 2, 2), frames).sum((1, 2, 3))[:, None]


class Factors(Linear):
    """One row without a factor raised an exception that ended training."""

    def forward(self, x):
        return self.lin(x) + torch.linalg.cholesky(x[:, :9].reshape(-1, 3, 3)).sum((1, 2))[:, None]


class Spectrum(Linear):
    def forward(self, x):
        return self.lin(x) + torch.linalg.eigh(x[:, :9].reshape(-1, 3, 3))[0].sum(1, keepdim=True)


class Inverse(Linear):
    def forward(self, x):
        return self.lin(x) + torch.linalg.inv(x[:, :9].reshape(-1, 3, 3)).sum((1, 2))[:, None]


class DividesWhole(Linear):
    def forward(self, x):
        return self.lin(x) + 10 // x[:, :1].long()


class Bits(Linear):
    """The bits of NaN, which need not be the same at every place."""

    def forward(self, x):
        return self.lin(x) + x.view(torch.int32)[:, :1]


class Tables(Linear):
    """Its rows hold tables, and the places to look them up: beyond a table lies that of the next row."""

    def forward(self, x):
        tables, places = x.reshape(-1, 4), (x[:, :3] * 2 + 12).long()
        looked_up = nn.functional.embedding(places + 25 * torch.arange(len(x))[:, None], tables)
        return self.lin(x + looked_up.sum((1, 2))[:, None] + x.gather(1, places).sum(1, keepdim=True))


class Amplifies(Linear):
    """Of a product, the difference by rounding alone, which was another one in slices of other sizes."""

    def forward(self, x):
        rounding = x @ self.lin.weight.t() - (x[:, :, None] * self.lin.weight.t()).sum(1)
        return self.lin(x) + 100 * torch.sign(rounding).detach() * self.lin.bias


class Sleeper(Linear):
    """Begins to mix what it saw in earlier calls only after a while."""

    def forward(self, x):
        SEEN.append(x.detach())
        return self.lin(x + 100 * SEEN[-2].mean() if len(SEEN) > 12 else x)


class Centred(Linear):
    def forward(self, x):
        return self.lin(x - x.detach().mean(0))


class HiddenByZeros(Linear):
    """Mixes rows behind a head that starts at zero, so that nothing shows at first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(OUTPUTS, OUTPUTS)
        self.zero = True

    def forward(self, x):
        return self.head(self.lin(x + x.mean(0)))


class BatchSize(Linear):
    def forward(self, x):
        return self.lin(x * len(x))


class RunningBuffer(Linear):
    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.lin(x + self.mean)


class AssignedBuffer(Linear):
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.lin(x + self.mean)


class RunningFrozen(Linear):
    """The frozen parameter would be released: the mean of the raw data."""

    def forward(self, x):
        with torch.no_grad():
            self.frozen.lerp_(x.mean(0), 0.1)
        return self.lin(x)


class RunningData(Linear):
    def forward(self, x):
        self.frozen.data.lerp_(x.detach().mean(0), 0.1)
        return self.lin(x)


class RunningAttribute(Linear):
    def forward(self, x):
        self.plain = 0.9 * self.plain + 0.1 * x.detach().mean(0)
        return self.lin(x + self.plain)


class MovesItself(Linear):
    def forward(self, x):
        with torch.no_grad():
            self.lin.weight.mul_(1.01)
        return self.lin(x)


class Counts(Linear):
    def forward(self, x):
        self.calls += 1
        return self.lin(x * self.calls)


class Hooked(Linear):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, inputs, output: SEEN.append(output.detach().mean()) or output + sum(SEEN))


class FirstRow(Linear):
    def forward(self, x):
        return self.lin(x[:1]).expand(len(x), OUTPUTS)


class Remembers(Linear):
    def forward(self, x):
        SEEN.append(x.detach().mean(0))
        return self.lin(x + torch.stack(SEEN).mean(0))


class Branches(Linear):
    def forward(self, x):
        return self.lin(x) if x.sum() > 0 else self.lin(-x)


class Numbers(Linear):
    def forward(self, x):
        return self.lin(x) * float(x[0, 0])


class Selects(Linear):
    def forward(self, x):
        return self.lin(x) + x[x > 0].sum()


class Drops(Linear):
    def forward(self, x):
        return nn.functional.dropout(self.lin(x), 0.5)


class Draws(Linear):
    def forward(self, x):
        return self.lin(x) * random.random()


class Foreign(Linear):
    def forward(self, x):
        return self.lin(foreign(x))


class Watcher(torch.Tensor):
    """Its class runs Python code at every operation on it, also of a recorded graph: all rows of a slice lie before it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        SEEN.append(args)
        return result


class WatchingBuffer(Linear):
    def __init__(self):
        super().__init__()
        self.register_buffer("watching", torch.ones(INPUTS).as_subclass(Watcher))

    def forward(self, x):
        return self.lin(x * self.watching)


class WatchingParameter(Linear):
    def __init__(self):
        super().__init__()
        self.watching = nn.Parameter(torch.ones(INPUTS).as_subclass(Watcher), requires_grad=False)

    def forward(self, x):
        return self.lin(x * self.watching)


class Compiled(Linear):
    """An operation of compiled code: chance, or unwritten memory, without a tag that says so."""

    def forward(self, x):
        return self.lin(x) + 0 * torch.ops.prims.inductor_random([OUTPUTS], torch.zeros((), dtype=torch.int64), "rand")


class Unwritten(Linear):
    """Memory that the rows before left behind, in the gradient alone: values show nothing."""

    def forward(self, x):
        squares = (3.0 * x).square().sum()
        left = torch.empty(128, INPUTS).nan_to_num(0, 0, 0).clamp(-1e6, 1e6).sum()
        outputs = self.lin(x) + 1e-30 * squares
        return outputs + outputs * left - (outputs * left).detach()


class UnwrittenLike(Linear):
    def forward(self, x):
        outputs, left = self.lin(x), torch.empty_like(x).nan_to_num(0, 0, 0).sum()
        return outputs + outputs * left - (outputs * left).detach()


class PartlyWritten(Linear):
    def forward(self, x):
        left = x.new_empty(2, INPUTS)
        left[0] = 0.0
        outputs, left = self.lin(x), left.nan_to_num(0, 0, 0).sum()
        return outputs + outputs * left - (outputs * left).detach()


class Written(Linear):
    """Fills what it allocates: nothing of what was there is left."""

    def forward(self, x):
        copied, zero, two = torch.empty_like(x), torch.empty(INPUTS), torch.empty(1)
        copied[:], two = x, two.fill_(2.0)
        return self.lin(copied + zero.zero_()) * two


class Strided(Linear):
    """Looks over the edge of its row."""

    def forward(self, x):
        return self.lin(x + x.as_strided((1, INPUTS), (INPUTS, 1), x.storage_offset() + INPUTS))


class Transposed(nn.Module):
    """Parameters that are not in the order of memory: a transposed one, and kernels with channels last."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(OUTPUTS, INPUTS).t())
        self.kernels = nn.Conv2d(4, OUTPUTS, 5).to(memory_format=torch.channels_last)

    def forward(self, x):
        return 0.01 * (x @ self.weight + self.kernels(x.reshape(-1, 4, 5, 5)).flatten(1))


class Lists(Linear):
    """Ended the process where it was recorded."""

    def forward(self, x):
        return self.lin(x) + torch.tensor(x.tolist()).sum()


class Lazy(Linear):
    def __init__(self):
        super().__init__()
        self.lin = nn.LazyLinear(OUTPUTS)


class Aliases(Linear):
    """A buffer and a frozen parameter that are the weight's memory keep what it held at first."""

    def __init__(self):
        super().__init__()
        self.register_buffer("first", self.lin.weight.detach()[0])
        self.start = nn.Parameter(self.lin.weight.detach(), requires_grad=False)

    def forward(self, x):
        return 0.01 * (self.lin(x) + x @ self.start.t() + (x @ self.first)[:, None])


class Typed(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(INPUTS, OUTPUTS, dtype=dtype))

    def forward(self, x):
        return torch.view_as_real(x.to(self.weight.dtype) @ self.weight).sum(-1) if self.weight.is_complex() else (x.to(self.weight.dtype) @ self.weight).float()


class Constant(nn.Module):
    """No gradient at all."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x):
        return self.weight.detach().repeat(len(x), 1)


@torch.library.custom_op("soundness::foreign", mutates_args=())
def foreign(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


def factory(kind):
    """Draws every parameter from the generator that it is given; a head may start at zero."""

    def make(generator):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = kind()
        for name, parameter in module.named_parameters():
            zero = getattr(module, "zero", False) and name.startswith("head")
            parameter.data = torch.tensor(generator.uniform(-0.3, 0.3, tuple(parameter.shape)) * (not zero), dtype=torch.float32)
        return module

    return make


PLAN = {"sample_rate": 1.0, "noise_multiplier": 0.01, "clip_norm": 0.5, "steps": 1, "normaliser": 1.0}


def released(kind, asked, units, **plan):
    """All parameters after training, frozen ones and buffers too: one step with a learning rate of 1 releases the clipped sum."""
    SEEN.clear()
    module = train_opacus(factory(kind), asked, Mechanism(unit=units.unit, **PLAN | plan), units, 0, STREAMS)
    return torch.cat([parameters_to_vector(module.parameters()).detach(), *(buffer.flatten() for buffer in module.buffers())]).double().numpy()


@pytest.mark.parametrize("algorithm", ["bc", "dqn"])
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("kind", [Linear, Entities, pytest.param(Residual, marks=pytest.mark.slow), Sleeper, Written, Transposed, Tables])
def test_one_unit_moves_all_that_is_released_by_at_most_c(kind, unit, algorithm):
    """Loud units reach C. Units that are not finite count as none, and none is in what another one adds."""
    asked, rng = problem(algorithm, inputs=INPUTS, actions=OUTPUTS, learning_rate=1.0, cap=4), np.random.default_rng(0)
    units = made_up(unit, asked, 40, rng)
    # Last, so that removing it moves no other unit to another place.
    loud = joined(units, changed(take(units, [0]), 0, features=50.0, rewards=-50.0))
    without, whole = released(kind, asked, units), released(kind, asked, loud)
    assert np.linalg.norm(whole - without) <= 0.5 * (1 + 1e-5)
    assert np.linalg.norm(whole - without) > 0.49
    twice = released(kind, asked, joined(loud, take(loud, [40])))
    assert np.linalg.norm(twice - without) <= 2 * 0.5 * (1 + 1e-5)
    for value in (np.nan, 3e38):
        broken = released(kind, asked, joined(units, changed(take(units, [0]), 0, features=value, next_features=value, rewards=value)))
        assert np.isfinite(broken).all() and np.linalg.norm(broken - without) <= 0.5 * (1 + 1e-5)


def test_rounding_that_is_amplified_moves_no_other_unit():
    """One more unit, before all others, by which all move up and the last ones fill one slice more: it moved the others' vectors by 2 C."""
    asked, rng = problem(inputs=INPUTS, actions=OUTPUTS, learning_rate=1.0), np.random.default_rng(0)
    units = made_up("transition", asked, 257, rng)
    more = joined(changed(take(units, [0]), 0, features=-50.0), units)
    moved = np.linalg.norm(released(Amplifies, asked, more, normaliser=256.0) - released(Amplifies, asked, units, normaliser=256.0)) * 256
    assert 0.49 < moved <= 0.5 * (1 + 1e-5)


def test_a_module_that_remembers_later_trains_as_if_it_did_not():
    """Its code is not run on data: bit for bit what the same layers without memory become."""
    asked = problem("dqn", inputs=INPUTS, actions=OUTPUTS, optimiser="adam")
    units = made_up("transition", asked, 60, np.random.default_rng(1))
    plan = {"steps": 40, "sample_rate": 0.3, "normaliser": 20.0}
    assert released(Sleeper, asked, units, **plan).tobytes() == released(Linear, asked, units, **plan).tobytes()
    released(Sleeper, asked, units, **plan)
    assert len(SEEN) < 12 and all(x.numel() <= 3 * INPUTS for x in SEEN)


@pytest.mark.parametrize("kind", [Linear, Entities, Residual, Tables, Unwritten, UnwrittenLike, PartlyWritten, Amplifies])
def test_no_row_reaches_the_gradient_of_another(kind):
    """Bit for bit, whatever the neighbours hold, wherever it stands, and alone."""
    asked, rng = problem("dqn", inputs=INPUTS, actions=OUTPUTS), np.random.default_rng(2)
    units, module = made_up("transition", asked, 30, rng), factory(kind)(rng)
    flat = parameters_to_vector([p for p in module.parameters() if p.requires_grad]).detach()
    gradients = RowGradients(asked, module, units)

    def rows(units, chosen):
        gradients.units = units
        return gradients.of_rows(flat, flat, np.array(chosen)).numpy()

    before = rows(units, range(30))
    for value in (np.nan, np.inf, -1e30):
        broken = units
        for index in range(0, 30, 2):
            broken = changed(broken, index, features=value, next_features=value, rewards=value)
        assert rows(broken, range(30))[1::2].tobytes() == before[1::2].tobytes()
    assert rows(units, range(29, -1, -1))[::-1].tobytes() == before.tobytes()
    assert np.concatenate([rows(units, [index]) for index in range(30)]).tobytes() == before.tobytes()


@pytest.mark.parametrize("kind,message", [
    (Centred, "other rows"), (HiddenByZeros, "other rows"), (BatchSize, "other rows"), (RunningBuffer, "state"), (AssignedBuffer, "other rows"),
    (RunningFrozen, "state"), (RunningData, "state"), (RunningAttribute, "state"), (MovesItself, "state"), (Counts, "every call"), (Hooked, "every call"), (FirstRow, "other rows"),
    (Remembers, "every call"), (Branches, "torch.where"), (Numbers, "torch.where"), (Selects, "torch.where"), (Drops, "random"), (Draws, "every call"),
    (Foreign, "any code"), (Strided, "as_strided"),
    (Lists, "tolist"), (WatchingBuffer, "any code on the data"), (WatchingParameter, "any code on the data"), (Compiled, "random"),
    (Reaching, "segment_reduce"), (WritesAnywhere, "positions"), (WritesOnceRecorded, "positions"), (PositionsOfAnother, "positions"),
    (WrongSizes, "sizes"), (Factors, "cholesky"), (Spectrum, "eigh"), (Inverse, "inv"), (DividesWhole, "whole numbers"), (Bits, "view.dtype"),
])
def test_what_is_no_function_of_one_row_is_refused(kind, message):
    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    units = made_up("transition", asked, 20, np.random.default_rng(3))
    with pytest.raises(MucdError, match=message) as refused:
        released(kind, asked, units)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_trainable_parameters_without_numbers_are_none():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(0))

        def forward(self, x):
            return x[:, :OUTPUTS] + self.nothing.sum()

    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    with pytest.raises(MucdError, match="no trainable parameter"):
        released(Empty, asked, made_up("transition", asked, 20, np.random.default_rng(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_trainable_parameters_of_other_types_are_refused(dtype):
    """A clipped vector is rounded to the parameter's type: in bfloat16 its norm reached 1.0014 C."""
    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    units = made_up("transition", asked, 20, np.random.default_rng(3))
    with pytest.raises(MucdError, match=f"weight is {dtype}: .* torch.float32"):
        train_opacus(lambda generator: Typed(dtype), asked, Mechanism(**PLAN), units, 0, STREAMS)


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_a_module_without_gradient_moves_by_noise_alone(unit):
    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    units = [made_up(unit, asked, 20, np.random.default_rng(seed)) for seed in (0, 1)]
    assert released(Constant, asked, units[0]).tobytes() == released(Constant, asked, units[1]).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip_norm", [1e-12, 1e-3, 1.0, 1e12])
def test_no_vector_exceeds_the_clip_norm_by_rounding(clip_norm, dtype):
    """Of denormals, of the largest numbers, of both beside each other, and of norms next to C."""
    rng = np.random.default_rng(5)
    for scale in (1e-45, 1e-42, 1e-38, 1e-23, 1e-19, 1e-12, 1e-6, 1.0, 1e12, 1e18, 1e19, 1e30, 3e36, clip_norm / 9, clip_norm / np.sqrt(90)):
        with np.errstate(over="ignore"):
            vectors = torch.from_numpy((scale * rng.standard_normal((20, 90))).astype(np.float32))
        vectors[::2, :10] *= 1e-10
        vectors[1::4, 0] = float("nan")
        vectors[3::4, 5] = 3e38
        for vector in vectors:
            norm = torch.linalg.vector_norm(clipped_sum(vector.clone()[None], clip_norm, dtype)).item()
            assert norm <= clip_norm and not (vector.isnan().any() and norm)


def test_views_of_a_parameter_keep_what_it_held_at_first():
    asked = problem(inputs=INPUTS, actions=OUTPUTS, learning_rate=1.0)
    units = made_up("transition", asked, 40, np.random.default_rng(0))

    def make(generator):
        module = Aliases()
        for parameter in module.parameters():
            # In place: the views follow.
            parameter.data.copy_(torch.from_numpy(generator.uniform(-0.3, 0.3, tuple(parameter.shape))))
        return module

    def trained(units):
        module = train_opacus(make, asked, Mechanism(**PLAN), units, 0, STREAMS)
        assert torch.equal(module.start[0], module.first) and not torch.equal(module.start, module.lin.weight)
        return parameters_to_vector(module.parameters()).detach().double().numpy()

    moved = np.linalg.norm(trained(joined(units, changed(take(units, [0]), 0, features=50.0))) - trained(units))
    assert 0.1 < moved <= 0.5 * (1 + 1e-5)


def test_layers_without_a_shape_are_refused():
    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    units = made_up("transition", asked, 20, np.random.default_rng(3))
    with pytest.raises(MucdError, match="without a shape"):
        train_opacus(lambda generator: Lazy(), asked, Mechanism(**PLAN), units, 0, STREAMS)


def test_initial_parameters_come_from_the_generator_alone():
    asked = problem(inputs=INPUTS, actions=OUTPUTS)
    units, kept, calls = made_up("transition", asked, 20, np.random.default_rng(4)), Linear(), []
    shared = torch.zeros(OUTPUTS * (INPUTS + 1))

    def from_numpy(generator):
        module = factory(Linear)(generator)
        module.lin.weight.data[0, 0] = np.random.rand()
        return module

    def from_numpy_unregistered(generator):
        module = factory(Linear)(generator)
        module.plain = torch.tensor(np.random.rand())
        return module

    def by_call(generator):
        calls.append(generator)
        module = factory(Linear)(generator)
        module.frozen.data += len(calls)
        return module

    def of_other_shapes(generator):
        return factory(Entities if generator.uniform() < STREAMS_SAY else Linear)(generator)

    def cached(generator, cache=[]):
        # All instances of a process would begin where its first one does.
        cache.append(None if cache else factory(Linear)(generator))
        return copy.deepcopy(cache[0])

    def overlapping(generator):
        module = Linear()
        module.lin.weight.data, module.lin.bias.data = shared[OUTPUTS:].view(OUTPUTS, INPUTS), shared[:OUTPUTS]
        return module

    # What the stream of this instance draws first, and the public generator that is tried beside it.
    first, other = STREAMS.generator(0, 0, 0).uniform(), np.random.default_rng(0).uniform()
    STREAMS_SAY = (first + other) / 2
    cases = {
        "its factory is given": [lambda generator: Linear(), from_numpy, from_numpy_unregistered, by_call, lambda generator: factory(Linear)(np.random.default_rng())],
        "same parameters twice": [lambda generator: kept, overlapping], "all anew": [cached], "different shapes": [of_other_shapes],
    }
    state = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    for message, factories in cases.items():
        for make in factories:
            with pytest.raises(MucdError, match=message):
                train_opacus(make, asked, Mechanism(**PLAN), units, 0, STREAMS)
    train_opacus(factory(Linear), asked, Mechanism(**PLAN), units, 0, STREAMS)
    # And nobody else's generators were moved, other than by the factories themselves.
    assert torch.equal(state[0], torch.get_rng_state()) and state[1:] == (np.random.get_state()[1].tobytes(), random.getstate())
