"""Small problems and made-up units for the tests of the learn room and of soundness; any engine's clipped sum."""

import numpy as np
import pytest
import torch

from mucd_ray.learn.algorithms import CONTINUOUS, DISCRETE
from mucd_ray.learn.engines import stacked
from mucd_ray.learn.engines.stacked import Draws, DrawsOnDevice, UnitsOnDevice, Workspace, train_stacked
from mucd_ray.learn.ensemble import fused_trains, train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

STREAMS = Streams(b"the secret of these tests")
INPUTS, ACTIONS = 5, 3
CPU = torch.device("cpu")
# Compiling a kernel takes ten seconds: the quick tests keep to one algorithm of each kind.
QUICK = {("bc", True), ("bc", False), ("dqn", True), ("iql", False), ("td3-bc", False)}
# Those that are told a return have the loss of cloning, and are not for noise (`trainers/test_told.py`).
LOSSES = [(name, discrete) for registry, discrete in ((DISCRETE, True), (CONTINUOUS, False)) for name, algorithm in registry.items() if not algorithm.conditioned]


def problem(algorithm="bc", discrete=True, *, inputs=INPUTS, actions=ACTIONS, cap=200, local_steps=1, local_rate=0.1, **learner) -> Problem:
    constants = {"v_min": -3.0, "v_max": 3.0, "atoms": 7} if algorithm == "c51" else {}
    local = LocalUpdate(cap=cap, steps=local_steps, learning_rate=local_rate)
    return Problem(
        learner=Learner(algorithm=algorithm, constants=constants, local=local, **{"learning_rate": 0.3} | learner), inputs=inputs, actions=actions,
        discrete=discrete, action_bounds=None if discrete else ((-1.0,) * actions, (1.0,) * actions),
    )


def cases(engines=("torch", "fused")):
    """Marks a test with every (engine, algorithm, discrete, unit) that trains differently; all but a few are slow."""
    params = []
    for algorithm, discrete in LOSSES:
        for unit in ("transition", "trajectory"):
            for engine in engines:
                if engine == "fused" and not fused_trains(problem(algorithm, discrete)):
                    continue
                # Behaviour cloning of continuous actions differs from that of discrete ones in the loss alone.
                quick = (algorithm, discrete) in QUICK and (engine, discrete, unit) != ("fused", False, "trajectory")
                quick &= engine != "padded" or algorithm == "dqn"
                name = f"{engine}-{algorithm}-{'discrete' if discrete else 'continuous'}-{unit}"
                params.append(pytest.param(engine, algorithm, discrete, unit, id=name, marks=() if quick else pytest.mark.slow))
    return pytest.mark.parametrize("engine,algorithm,discrete,unit", params)


def transitions(problem: Problem, rows: int, rng) -> Units:
    """Random transitions: every fifth ends its episode."""
    features, following = rng.standard_normal((2, rows, problem.inputs)).astype(np.float32)
    if problem.discrete:
        actions = rng.integers(0, problem.actions, rows)
    else:
        actions = rng.uniform(-1, 1, (rows, problem.actions)).astype(np.float32)
    return Units.transitions(
        features, actions, next_features=following if problem.algorithm.looks_ahead else None,
        rewards=rng.standard_normal(rows).astype(np.float32), keeps=(np.arange(rows) % 5 != 4).astype(np.float32),
    )


def trajectories(problem: Problem, lengths, rng) -> Units:
    """Random trajectories of these lengths, one after the other."""
    lengths = np.array(lengths, np.int64)
    arrays = transitions(problem, int(lengths.sum()), rng).arrays()
    return Units(unit="trajectory", **arrays | {"starts": np.cumsum(lengths) - lengths, "lengths": lengths})


def made_up(unit: str, problem: Problem, count: int, rng, longest: int = 7) -> Units:
    """`count` units; trajectories have 1 to `longest` transitions."""
    return transitions(problem, count, rng) if unit == "transition" else trajectories(problem, rng.integers(1, longest + 1, count), rng)


def rows_of(units: Units, unit: int) -> slice:
    return slice(units.starts[unit], units.starts[unit] + units.lengths[unit])


def take(units: Units, chosen) -> Units:
    """The data set of these units, in this order; one may be taken several times."""
    rows = np.concatenate([np.arange(units.starts[u], units.starts[u] + units.lengths[u]) for u in chosen])
    lengths = units.lengths[list(chosen)]
    arrays = {name: array[rows] if len(array) else array for name, array in units.arrays().items() if name not in ("starts", "lengths")}
    return Units(unit=units.unit, **arrays, starts=np.cumsum(lengths) - lengths, lengths=lengths)


def joined(*parts: Units) -> Units:
    """The data sets one after the other."""
    arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in parts[0].arrays()}
    offsets = np.cumsum([0, *(len(part.features) for part in parts[:-1])])
    return Units(unit=parts[0].unit, **arrays | {"starts": np.concatenate([part.starts + offset for part, offset in zip(parts, offsets)])})


def changed(units: Units, unit: int, *, action=None, **values) -> Units:
    """A copy in which all rows of one unit have these values, broadcast: features=nan, rewards=1e30, ..."""
    arrays = {name: array.copy() for name, array in units.arrays().items()}
    if action is not None:
        values["actions"] = action
    for name, value in values.items():
        if len(arrays[name]):
            arrays[name][rows_of(units, unit)] = value
    return Units(unit=units.unit, **arrays)


def clipped_sum(engine: str, problem: Problem, flat: np.ndarray, units: Units, clip_norm: float) -> np.ndarray:
    """An engine's clipped sum over all units at the parameters `flat`, which are the target's too, without noise: float64 [parameter_count].

    Engine "padded" is the torch engine as on a GPU.
    """
    if not len(units):
        return np.zeros(problem.parameter_count)
    if engine == "fused":
        from mucd_ray.learn.engines.fused import engine as fused

        return fused.clipped_sum(problem, flat, units, clip_norm)
    parameters, data = torch.zeros(1, -(-problem.parameter_count // 32) * 32), UnitsOnDevice(units, CPU, padded=engine == "padded")
    parameters[0, : problem.parameter_count] = torch.from_numpy(flat)
    draws = (DrawsOnDevice if data.padded else Draws)(Streams(bytes(16)), [0], data, 1.0, problem.learner.local.cap)
    out = torch.zeros_like(parameters, dtype=torch.float64)
    with torch.no_grad():
        result = stacked.clipped_sum(problem, parameters, parameters.clone(), data, draws.rows(0), clip_norm, out=out, workspace=Workspace(CPU))
    return result[0, : problem.parameter_count].numpy()


def random_parameters(problem: Problem, rng, scale: float = 0.3) -> np.ndarray:
    return (scale * rng.standard_normal(problem.parameter_count)).astype(np.float32)


PLAN = {"sample_rate": 0.1, "noise_multiplier": 1.0, "clip_norm": 0.5, "steps": 6, "normaliser": 20.0}


def trained(problem: Problem, units: Units, instances, *, engine="torch", block=None, **plan) -> np.ndarray:
    """Acting parameters [P, n] of instances."""
    mechanism = Mechanism(**{"unit": units.unit} | PLAN | plan)
    result = train_block(problem=problem, mechanism=mechanism, units=units, instances=instances, streams=STREAMS, engine=engine, block=block)
    return np.concatenate([tensor.numpy().reshape(len(instances), -1) for tensor in result.values()], axis=1)


def released(problem: Problem, units: Units, instances, *, engine="torch", **plan) -> np.ndarray:
    """Parameters [P, parameter_count] of all networks of instances, those that do not act too."""
    mechanism = Mechanism(**{"unit": units.unit} | PLAN | plan)
    if engine == "fused":
        from mucd_ray.learn.engines.fused.engine import FusedTrainer

        trainer = FusedTrainer(problem, mechanism, units, STREAMS)
        return np.array([trainer.train(instance) for instance in instances])
    with torch.no_grad():
        flat = train_stacked(problem, mechanism, UnitsOnDevice(units, CPU), instances, STREAMS)
    return flat[:, : problem.parameter_count].numpy()


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """To the nearest number of `bits` explicit bits, as TF32 (10) and bfloat16 (7) round operands."""
    drop = 23 - bits
    as_int = x.contiguous().view(torch.int32)
    return ((as_int + (1 << drop - 1)) & -(1 << drop)).view(torch.float32)
