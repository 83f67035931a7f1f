"""The same mechanism for any `nn.Module`: each unit's gradient is that of its own rows, by construction.

The module's Python code never sees data. Before anything is read, the gradient at one row is recorded, on tensors without numbers, as a graph
of operations with parameters, buffers and the row as its arguments; each operation must be on a list of those that stay within a row whatever
it holds (`operations.py`). Training runs that graph on each row by itself (`torch.func.vmap`), on always the same number of rows, at which
no row's place shows in its gradient's bits (`places.py`). So whatever a module does with the batch, its size, the number of calls, attributes,
hooks, closures, global lists or rounding, a row cannot reach another row's gradient through it, and no row leaves a trace but in the clipped
sum. Modules that this would change are refused.

Opacus' loop and its gradients are not used: they take q and the normaliser from len(dataset), let a NaN or 1e30 gradient through their clip,
draw noise from a generator with 32 seed bits, and count rows that a module folds into its batch as units of their own.
"""

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call, grad, vmap
from torch.nn.parameter import is_lazy
from torch.nn.utils import vector_to_parameters
from torch.utils._pytree import tree_leaves

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.algorithm import Transition
from mucd_ray.learn.engines import operations, places
from mucd_ray.learn.engines.clipping import clip_factors
from mucd_ray.learn.engines.stacked import Draws, UnitsOnDevice, noisy_mean, slices
from mucd_ray.learn.learner import OPTIMISERS
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams, poisson_sample
from mucd_ray.learn.units import Units, check
from mucd_ray.mechanism.gaussian.mechanism import NoisySteps

# Rows that are looked at together, the last ones filled up: at most so many, and so many numbers in their gradients.
# Multiples of what the processor computes at a time: no row lies in the rest of a loop, where some functions (sigmoid, pow) are computed in other ways.
SLICES, GRADIENT_FLOATS = (64, 32), 20_000_000
# What was found about records that were looked at, by their code and the shapes in it, of which it does not tell all: the first operation whose results
# depend on a row's place, or None.
_PLACES: dict[tuple, str | None] = {}


def train_opacus(
    module_factory: Callable[[np.random.Generator], nn.Module],
    problem: Problem,
    mechanism: NoisySteps,
    units: Units,
    instance: int,
    streams: Streams,
) -> nn.Module:
    """Train one instance of any module that is a function of one row and its parameters.

    Args:
        module_factory: makes a new module from a generator, which must be its only source of chance: it is called with equal streams twice
            and must give equal modules. Parameters that need no gradient, and buffers, stay what they are. The module takes rows [B, d] of
            features (frames are unflattened by its first layer) and gives what the algorithm's only network gives: [B,
            problem.network.outputs].
        problem: an algorithm of one network that does not take actions, such as all discrete ones; hidden layers are not read.
        mechanism, units: as in `train_block`. A trajectory makes one local step.
        instance, streams: the source of all randomness.

    Returns:
        A module from the factory with the trained parameters, in evaluation mode.

    Formal guarantees: as for `train_block`, whatever Python code the module runs. What cannot be seen: numbers that the factory or the
    module got from the data *before*, such as initial parameters trained on them, or their mean in a constant.

    Raises:
        MucdError: the module mixes rows (BatchNorm), is random (dropout), keeps a state, reads values in Python (`if x.sum() > 0`), holds
            tensors of a class of its own, gives another number of outputs, uses an operation that is not listed in `operations.py`, or has no
            trainable parameter or one that is not float32; the factory's modules depend on something else than its generator; the algorithm
            has several networks; several local steps; what `train_block` refuses.
    """
    check(problem, mechanism, units)
    algorithm, learner = problem.algorithm, problem.learner
    if len(problem.networks) > 1 or problem.networks[0][0].takes_action:
        raise MucdError(f"algorithm {learner.algorithm!r} has several networks here: this engine trains those of a single one, such as bc or dqn")
    if units.unit != "transition" and learner.local.steps > 1:
        raise MucdError(f"{learner.local.steps} local steps are not trained by this engine: use 1, or the torch engine")
    tried, module = _made(module_factory, lambda: streams.generator(instance, 0, purposes.INITIALISE))
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not any(parameter.numel() for parameter in trainable):
        raise MucdError("the module has no trainable parameter: give one that has")
    for name, parameter in module.named_parameters():
        # A clipped vector is rounded to its type: in bfloat16 its norm would be up to 1.004 C.
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise MucdError(f"parameter {name} is {parameter.dtype}: trainable ones must be torch.float32, which keeps vectors within the clip norm")
    gradients = RowGradients(problem, tried, units, mechanism.normaliser * (learner.local.cap if units.unit == "trajectory" else 1))
    parameters = torch.cat([parameter.detach().flatten() for parameter in trainable])
    target = parameters.clone() if algorithm.has_target else parameters
    optimiser = OPTIMISERS[learner.optimiser](learner, parameters)
    averaged = learner.averaged_steps(mechanism.steps)
    total, summed = torch.zeros((2, len(parameters)), dtype=torch.float64)
    draws = Draws(streams, [instance], UnitsOnDevice(units, torch.device("cpu")), mechanism.sample_rate, learner.local.cap)
    for step in range(mechanism.steps):
        if units.unit == "transition":
            sample = poisson_sample(streams.borrow(instance, step, purposes.SAMPLE), len(units), mechanism.sample_rate)
            vectors = gradients.of_transitions(parameters, target, sample)
        else:
            vectors = gradients.of_trajectories(parameters, target, draws.trajectories(step)[0])
        summed.zero_()
        for of_units in vectors:
            summed += clipped_sum(of_units, mechanism.clip_norm, torch.float32 if units.unit == "transition" else torch.float64)
        optimiser.step(parameters, noisy_mean(summed, draws.noise(step, len(parameters))[0], mechanism), step)
        if algorithm.has_target:
            target.add_(torch.sub(parameters, target).mul_(problem.constants["target_rate"]))
        if step >= mechanism.steps - averaged:
            total += parameters
    vector_to_parameters((total / averaged).to(torch.float32) if averaged else parameters, trainable)
    module.eval()
    return module


def clipped_sum(of_units: Tensor, clip_norm: float, dtype: torch.dtype) -> Tensor:
    """Sum of the units' clipped vectors [U, D] -> float64 [D]; uses `of_units` up.

    A unit counts as zero if its squared norm is not finite in `dtype`, which is that of the torch engine's squared norms. Every clipped
    vector is rounded by itself and their sum is float64: no unit moves what another one adds.
    """
    squares = torch.linalg.vector_norm(of_units, dim=1, dtype=torch.float64).square_()
    of_units.masked_fill_(~torch.isfinite(squares.to(dtype))[:, None], 0.0)
    return of_units.mul_(clip_factors(squares, clip_norm).to(torch.float32)[:, None]).sum(0, dtype=torch.float64)


def _made(factory: Callable[[np.random.Generator], nn.Module], stream: Callable[[], np.random.Generator]) -> tuple[nn.Module, nn.Module]:
    """Two equal modules in training mode, one to try and one to keep.

    Raises:
        MucdError: they are not equal although the generators are, were not drawn in the same way, share parameters, or a third one from
            another generator has other shapes.
    """
    modules, generators = [], (stream(), stream(), np.random.default_rng(0))
    for seed, generator in enumerate(generators):
        with _global_generators(seed):
            modules.append(factory(generator))
            modules[-1].train()
    if any(is_lazy(tensor) for tensor in (*modules[0].parameters(), *modules[0].buffers())):
        raise MucdError("the module has parameters without a shape (lazy layers): make layers with the number of their inputs")
    for name, tensor in (*modules[0].named_parameters(), *modules[0].named_buffers()):
        _check_plain(name, tensor)
    named = [dict(module.named_parameters()) | dict(module.named_buffers()) for module in modules]
    if len({tuple((name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad) for name, tensor in tensors.items()) for tensors in named}) > 1:
        raise MucdError("the factory gives modules of different shapes for different generators: all instances need the same parameters")
    if not _same(*(_attributes(module) for module in modules[:2])):
        raise MucdError("the module's initial parameters or other tensors depend on more than the generator that its factory is given: draw all of them from it, not from torch or numpy, which know nothing of the run's secret")
    if generators[0].random() != generators[1].random():
        raise MucdError("the factory draws from its generator at its first call alone, or not as much at every call: what it keeps would be shared by instances that have to be independent; make all anew at every call")
    first, second = ({tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.requires_grad and tensor.numel()} for tensors in named[:2])
    if first & second:
        raise MucdError("the factory gives the same parameters twice: an instance would begin where another one ended; make new ones at every call")
    return modules[0], modules[1]


@contextlib.contextmanager
def _global_generators(seed: int) -> Iterator[None]:
    """Other states of the generators that everybody may draw from, set back afterwards."""
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
            yield
        finally:
            np.random.set_state(states[0]), random.setstate(states[1])


class RowGradients:
    """The gradient of any row's loss by the trainable parameters, as a recorded function, and of units: so many rows at a time that memory
    does not grow with the batch, and always as many, so that a row's gradient has the same bits wherever it stands.

    Args:
        expected: public number of rows in a step; nothing but speed depends on it.
    """

    def __init__(self, problem: Problem, module: nn.Module, units: Units, expected: float = SLICES[0]):
        self.units = units
        trainable = {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.frozen = {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers()) if name not in trainable}
        self.shapes = {name: parameter.shape for name, parameter in trainable.items()}
        self.graph = recorded(problem, module, trainable, self.frozen, units.features.shape[1])
        self.all_rows = vmap(self.graph, in_dims=(None, None, None, 0, 0, 0))
        size = sum(shape.numel() for shape in self.shapes.values())
        self.slice = self._independent(next((rows for rows in SLICES if rows <= GRADIENT_FLOATS // size and rows < 2 * max(expected, SLICES[1])), 1), size)

    def _independent(self, rows: int, size: int) -> int:
        """The largest of `SLICES` up to `rows`, or 1, at which no place of a row shows in its gradient's bits."""
        flat = places.made_up((size,), 0)[0].to(torch.float32)
        named = self._named(flat)
        x, *transition = (torch.from_numpy(np.zeros((1, *array.shape[1:]), array.dtype)) for array in (self.units.features, self.units.actions, self.units.rewards, self.units.keeps))
        shapes = tuple(tuple(part.shape) for node in self.graph.graph.nodes for part in tree_leaves(node.meta.get("val")) if isinstance(part, Tensor))
        while rows >= places.KINDS:
            key = (self.graph.code, shapes, rows, torch.get_num_threads())
            if key not in _PLACES:
                _PLACES[key] = places.first_difference(self.graph, (named, named, self.frozen), (x, x, tuple(transition)), rows)
            if _PLACES[key] is None:
                return rows
            warnings.warn(f"{_PLACES[key]} rounds differently at different places of {rows} rows: fewer are trained at a time, which is slower", stacklevel=2)
            rows = next((fewer for fewer in SLICES if fewer < rows), 1)
        return 1

    def of_rows(self, parameters: Tensor, target: Tensor, rows: np.ndarray) -> Tensor:
        """[len(rows), D] of at most `slice` rows, at the flat parameters [D] of the network and of its target copy; every row by itself."""
        filled = np.resize(rows, self.slice)

        def read(array: np.ndarray) -> Tensor:
            # In memory of torch's own, whose alignment is always the same.
            return torch.from_numpy(array[filled]).clone()

        x = read(self.units.features)
        next_x = read(self.units.next_features) if len(self.units.next_features) else x
        transition = tuple(read(array) for array in (self.units.actions, self.units.rewards, self.units.keeps))
        return self.all_rows(self._named(parameters), self._named(target), self.frozen, x, next_x, transition)[0][: len(rows)].contiguous()

    def of_transitions(self, parameters: Tensor, target: Tensor, rows: np.ndarray) -> Iterator[Tensor]:
        """Yields [<= slice, D]: the gradient of every row."""
        for start in range(0, len(rows), self.slice):
            yield self.of_rows(parameters, target, rows[start : start + self.slice])

    def of_trajectories(self, parameters: Tensor, target: Tensor, groups: list[np.ndarray]) -> Iterator[Tensor]:
        """Yields [>= 1, D]: for every trajectory with rows the mean gradient of its rows."""
        groups = [rows for rows in groups if len(rows)]
        if not groups:
            return
        for start, end in slices([len(rows) for rows in groups], self.slice):
            part = groups[start:end]
            rows, counts = np.concatenate(part), torch.tensor([len(rows) for rows in part])
            owners, means = torch.repeat_interleave(counts), torch.zeros(len(part), len(parameters))
            for at, of_rows in zip(range(0, len(rows), self.slice), self.of_transitions(parameters, target, rows)):
                owner = owners[at : at + self.slice]
                means.index_add_(0, owner, of_rows.div_(counts[owner][:, None]))
            yield means

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items())}


def recorded(problem: Problem, module: nn.Module, trainable: dict[str, Tensor], frozen: dict[str, Tensor], width: int) -> torch.fx.GraphModule:
    """Graph of (trainable, the target's, frozen, x [d], next_x [d], transition) -> (gradient [D], outputs [O]) of one row.

    It is recorded on tensors without numbers and holds operations that are known to be safe, see `operations.py`. The module's own code is not
    run on anything else.

    Raises:
        MucdError: the module is no such function, or says something else about a batch than about its rows.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise MucdError(f"layer {name} is {type(layer).__name__}, which mixes the rows of a batch: use nn.GroupNorm or nn.LayerNorm")
    made_up = np.random.default_rng(0)
    # Where all is zero or in order, much is hidden: a head of zeros, say.
    trainable, target = ({name: value + torch.from_numpy(made_up.uniform(-0.1, 0.1, value.shape)).to(value.dtype) for name, value in trainable.items()} for _ in range(2))
    x, next_x = torch.from_numpy(made_up.standard_normal((2, 3, width))).to(torch.float32)
    actions = torch.zeros(3, *([len(problem.components)] if problem.components else []), dtype=torch.int64) if problem.discrete else torch.zeros(3, problem.actions)
    transitions = (actions, torch.ones(3), torch.ones(3))
    one_row = (x[0], next_x[0], tuple(part[0] for part in transitions))

    def batch(parameters: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, (parameters, frozen), (x,))

    def call(parameters: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor) -> Tensor:
        return batch(parameters, frozen, x[None])[0]

    def gradient(parameters, target, frozen, x, next_x, transition):
        context = [
            call(target if evaluation.target else parameters, frozen, next_x if evaluation.next else x).detach() for evaluation in problem.algorithm.context
        ]

        def loss(parameters):
            outputs = call(parameters, frozen, x)
            joined = torch.cat(context) if context else outputs.new_zeros(0)
            return problem.algorithm.loss(outputs, joined, Transition(*transition), problem.constants), outputs

        gradients, outputs = grad(loss, has_aux=True)(parameters)
        return torch.cat([part.flatten() for part in gradients.values()]), outputs

    try:
        with _global_generators(0), torch.enable_grad():
            before = _attributes(module)
            whole = operations.record(batch, trainable, frozen, x)
            if not _same(_attributes(module), before):
                raise MucdError("the module keeps a state that calls change: it would carry data from step to step without noise; remove it")
            graph, again = (operations.record(gradient, trainable, target, frozen, *one_row) for _ in range(2))
            constants, others = ({f"{number}{name}": value for number, part in enumerate(parts) for name, value in _attributes(part).items()} for parts in ((graph, whole), (again, whole)))
            if graph.code != again.code or not _same(constants, others):
                raise MucdError("the module does something else at every call: remove what it draws, counts or remembers")
            for value in constants.values():
                _check_plain("a tensor that the module uses", value)
            outputs = whole(trainable, frozen, x)
            if outputs.shape != (3, problem.network.outputs):
                raise MucdError(f"the module gives {tuple(outputs.shape)} for 3 rows: the algorithm wants {problem.network.outputs} outputs for each")
            of_rows = vmap(graph, in_dims=(None, None, None, 0, 0, 0))(trainable, target, frozen, x, next_x, transitions)[1]
    except MucdError:
        raise
    except Exception as error:
        # Whatever the module's code and the recorder raise: it is no function of one row, or none that can be recorded.
        raise MucdError(f"the module cannot be recorded as a function of one row: {_cause(error)}") from None
    if not torch.allclose(of_rows, outputs, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise MucdError("the module's output for one row depends on other rows of the batch or on their number: remove what mixes them, such as a mean over the batch")
    return graph


def _check_plain(name: str, tensor: Tensor) -> None:
    """Refuse a tensor of another class: operations on it run that class's Python code, with the rows of data among their arguments."""
    if type(tensor) not in (Tensor, nn.Parameter):
        raise MucdError(f"{name} is a {type(tensor).__name__}, whose class may run any code on the data: use a plain torch.Tensor or nn.Parameter")


def _attributes(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors that are attributes of the module or of its submodules: parameters, buffers and any other."""
    return {
        f"{path}.{name}": value.detach().clone() if _has_numbers(value) else value for path, part in module.named_modules() for name, value in (*vars(part).items(), *part._parameters.items(), *part._buffers.items())
        if isinstance(value, Tensor)
    }


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        _has_numbers(a[name]) and _has_numbers(b[name]) and a[name].shape == b[name].shape and torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a
    )


def _has_numbers(tensor: Tensor) -> bool:
    """Whether it is none that was kept from a recording."""
    return not (isinstance(tensor, FakeTensor) or torch._is_functional_tensor(tensor) or is_functorch_wrapped_tensor(tensor))


# What exceptions of the recorder and of vmap say -> what is wrong with the module.
CAUSES = {
    "value out of a tracing tensor": "its Python code reads values (`if x.sum() > 0`, `.item()`): use torch.where",
    "data pointer": "its Python code reads values (`.numpy()`): use torch's operations",
    "mutate a captured Tensor": "it changes a buffer, a parameter or another tensor in place, a state that would carry data from step to step without noise",
    "_local_scalar_dense": "its Python code reads values (`if x.sum() > 0`, `.item()`): use torch.where",
    "fake impl": "it uses operations of other libraries, which may run any code on the data: use torch's own",
    "nonzero": "the shape of something depends on values (`x[x > 0]`): use torch.where",
}


def _cause(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return next((meaning for sign, meaning in CAUSES.items() if sign in text), text.splitlines()[0][:200])
