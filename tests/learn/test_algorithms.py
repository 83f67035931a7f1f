"""Every algorithm: its vectors against a second writing of the loss, nothing shared between units, and that it learns what it should."""

import math
import types
import warnings

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithm import Transition, output_deltas
from mucd_ray.learn.algorithms import CONTINUOUS, DISCRETE, algorithm_for, bc
from mucd_ray.learn.engines.stacked import UnitsOnDevice, Workspace, clipped_sum
from mucd_ray.learn.ensemble import train_block
from mucd_ray.learn.learner import Learner, LocalUpdate
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.streams import Streams
from mucd_ray.learn.units import Units
from mucd_ray.mechanism.gaussian.mechanism import Mechanism

STREAMS = Streams(b"a secret of tests")
# Those that are told a return have the loss of cloning, and are not for noise (`trainers/test_told.py`).
CASES = [(name, discrete) for registry, discrete in ((DISCRETE, True), (CONTINUOUS, False)) for name, algorithm in registry.items() if not algorithm.conditioned]
EVERY_ALGORITHM = pytest.mark.parametrize("name,discrete", CASES, ids=[f"{name}-{'discrete' if kind else 'continuous'}" for name, kind in CASES])
STATE, ACTIONS = 4, 3
CONSTANTS = {"c51": {"atoms": 7, "v_min": -2.0, "v_max": 3.0}, "qr-dqn": {"quantiles": 5}, "iql": {"max_weight": 4.0, "policy_weight": 0.7}, "td3-bc": {"q_weight": 0.4}}


def problem_of(name, discrete, inputs=STATE, actions=ACTIONS, constants=None, **learner):
    constants = CONSTANTS.get(name, {}) if constants is None else constants
    bounds = None if discrete else ((-1.0,) * actions, (1.0,) * actions)
    learner = Learner(algorithm=name, constants=constants, **{"learning_rate": 0.1, **learner})
    return Problem(learner=learner, inputs=inputs, actions=actions, discrete=discrete, action_bounds=bounds)


def random_units(discrete, rows, seed=0, lengths=None):
    """Random transitions, each a unit, or trajectories of these lengths."""
    rng = np.random.default_rng(seed)
    features, following = rng.standard_normal((2, rows, STATE)).astype(np.float32)
    actions = rng.integers(0, ACTIONS, rows) if discrete else rng.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32)
    rewards, keeps = rng.standard_normal(rows).astype(np.float32), (rng.random(rows) > 0.3).astype(np.float32)
    units = Units.transitions(features, actions, next_features=following, rewards=rewards, keeps=keeps)
    if lengths is None:
        return units
    return Units(unit="trajectory", **{**units.arrays(), "starts": np.cumsum([0, *lengths[:-1]]), "lengths": np.array(lengths)})


def clipped(problem, parameters, target, units, chosen, clip_norm):
    """The clipped sum over the units `chosen` of one instance, [parameter_count]; parameters and target [parameter_count]."""
    device = UnitsOnDevice(units, torch.device("cpu"))
    rows = [[np.arange(units.starts[unit], units.starts[unit] + units.lengths[unit]) for unit in chosen]]
    if units.unit == "transition":
        rows = device.gather([np.concatenate(of_instance) if of_instance else np.zeros(0, np.int64) for of_instance in rows])
    stride = -(-problem.parameter_count // 32) * 32
    flat, flat_target, out = (F.pad(x, (0, stride - len(x)))[None].clone() for x in (parameters, target, torch.zeros(0)))
    with torch.no_grad():
        clipped_sum(problem, flat, flat_target, device, rows, clip_norm, out=out, workspace=Workspace(device.device))
    return out[0, : problem.parameter_count]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 0.3, 0.99]))
def test_the_mixture_of_a_policy_and_random_actions(seed, rate):
    """Its loss is the likelihood written down; its compiled derivative is the loss'; without noise it is cloning, digit for digit."""
    outputs, action = torch.from_numpy(np.random.default_rng(seed).standard_normal(ACTIONS) * 5).float().requires_grad_(), torch.tensor(seed % ACTIONS)
    transition = Transition(action, torch.tensor(rate), torch.tensor(1.0))
    loss = bc.DISCRETE_MIXTURE.loss(outputs, None, transition, {})
    assert loss.item() == pytest.approx(-math.log((1 - rate) * torch.softmax(outputs.double(), 0)[action].item() + rate / ACTIONS), rel=1e-4, abs=1e-6)
    deltas, plain = np.zeros((2, ACTIONS), np.float32)
    bc.DISCRETE_MIXTURE.delta(outputs.detach().numpy(), None, int(action), np.float32(rate), np.float32(1), None, deltas)
    assert deltas == pytest.approx(torch.autograd.grad(loss, outputs)[0].numpy(), rel=1e-3, abs=1e-6)
    if not rate:
        bc.DISCRETE.delta(outputs.detach().numpy(), None, int(action), np.float32(0), np.float32(1), None, plain)
        assert deltas.tobytes() == plain.tobytes()


# A second writing of the losses, on parameters: Q(s), V(s), ... are functions of a flat vector.

TOWERS = {  # name -> (tower, takes the action, outputs) in the order of the parameters
    ("iql", False): (("q", True, 1), ("v", False, 1), ("policy", False, ACTIONS)),
    ("td3-bc", False): (("q1", True, 1), ("q2", True, 1), ("policy", False, ACTIONS)),
}
OUTPUTS = {"c51": 7 * ACTIONS, "qr-dqn": 5 * ACTIONS, "iql": 2 * ACTIONS + 1}


def networks(name, discrete, hidden, flat):
    """{tower: function of its input} for parameters `flat`."""
    functions, start = {}, 0
    for tower, takes_action, outputs in TOWERS.get((name, discrete), (("only", False, OUTPUTS.get(name, ACTIONS) if discrete else ACTIONS),)):
        widths, layers = (STATE + ACTIONS * takes_action, *hidden, outputs), []
        for inputs, width in zip(widths, widths[1:]):
            layers.append((flat[start : start + inputs * width].view(width, inputs), flat[start + inputs * width :][:width]))
            start += (inputs + 1) * width

        def run(*parts, layers=layers):
            x = torch.cat(parts)
            for weight, bias in layers[:-1]:
                x = torch.relu(weight @ x + bias)
            return layers[-1][0] @ x + layers[-1][1]

        functions[tower] = run
    assert start == len(flat)
    return functions


def textbook(name, discrete, hidden, flat, target_flat, s, a, r, s2, keep):
    """Loss of one transition; whatever the papers hold constant is detached."""
    online, target = networks(name, discrete, hidden, flat), networks(name, discrete, hidden, target_flat)
    frozen = networks(name, discrete, hidden, flat.detach())

    def bootstrap(value):
        return (r + 0.99 * keep * value).detach()

    def smooth(x, y):
        return F.smooth_l1_loss(x, y, reduction="sum")

    if name == "bc":
        return F.cross_entropy(online["only"](s), a) if discrete else 0.5 * (online["only"](s) - a).square().sum()
    if name in ("dqn", "double-dqn", "cql"):
        q, q2 = online["only"](s), target["only"](s2)
        best = q2.argmax() if name == "dqn" else frozen["only"](s2).argmax()
        return smooth(q[a], bootstrap(q2[best])) + (F.cross_entropy(q, a) if name == "cql" else 0.0)
    if name == "c51":
        z = torch.linspace(-2.0, 3.0, 7, dtype=s.dtype)
        p2 = torch.softmax(target["only"](s2).view(ACTIONS, 7), 1)
        p2 = p2[(p2 @ z).argmax()]
        shifted = (r + 0.99 * keep * z).clip(-2.0, 3.0)
        hats = (1 - (shifted[None] - z[:, None]).abs() / (z[1] - z[0])).clip(0, 1)
        return F.cross_entropy(online["only"](s).view(ACTIONS, 7)[a], (hats @ p2).detach())
    if name == "qr-dqn":
        theta, theta2 = online["only"](s).view(ACTIONS, 5)[a], target["only"](s2).view(ACTIONS, 5)
        goals = bootstrap(theta2[theta2.sum(1).argmax()])
        total = 0.0
        for i in range(5):
            for goal in goals:
                total += abs((2 * i + 1) / 10 - float(goal < theta[i])) * smooth(theta[i], goal) / 5
        return total
    if name == "iql" and discrete:
        of, of_target, of_next = online["only"](s), target["only"](s), frozen["only"](s2)
        q, v, v2, q_target, clone = of[a], of[ACTIONS], of_next[ACTIONS], of_target[a], F.cross_entropy(of[ACTIONS + 1 :], a)
    elif name == "iql":
        q, v, v2, q_target = online["q"](s, a)[0], online["v"](s)[0], frozen["v"](s2)[0], target["q"](s, a)[0]
        clone = 0.5 * (torch.tanh(online["policy"](s)) - a).square().sum()
    if name == "iql":
        advantage = (q_target - v).detach()
        weight = torch.exp(3.0 * advantage).clip(max=4.0)
        return smooth(q, bootstrap(v2)) + (0.3 if advantage < 0 else 0.7) * smooth(v, q_target.detach()) + 0.7 * weight * clone
    assert name == "td3-bc"
    a2 = torch.tanh(target["policy"](s2))
    y = bootstrap(torch.minimum(target["q1"](s2, a2), target["q2"](s2, a2))[0])
    pi = torch.tanh(online["policy"](s))
    policy = (pi - a).square().sum() - 0.4 * frozen["q1"](s, pi)[0]
    return smooth(online["q1"](s, a)[0], y) + smooth(online["q2"](s, a)[0], y) + policy


def textbook_gradient(problem, flat, target, units, row):
    s, s2, a, r, keep = (
        torch.tensor(array[row], dtype=torch.int64 if array.dtype == np.int64 else torch.float64)
        for array in (units.features, units.next_features, units.actions, units.rewards, units.keeps)
    )
    flat = flat.double().requires_grad_()
    learner = problem.learner
    loss = textbook(learner.algorithm, problem.discrete, learner.hidden, flat, target.double(), s, a, r, s2, keep)
    return torch.autograd.grad(loss, flat)[0]


def random_parameters(problem, seed, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, problem.parameter_count, generator=generator)


@EVERY_ALGORITHM
@pytest.mark.parametrize("hidden", [(), (8, 6)])
def test_a_transitions_vector_is_the_gradient_of_the_textbook_loss(name, discrete, hidden):
    problem, units = problem_of(name, discrete, hidden=hidden), random_units(discrete, 40)
    flat, target = random_parameters(problem, 1)
    for row in range(40):
        expected = textbook_gradient(problem, flat, target, units, row)
        vector = clipped(problem, flat, target, units, [row], 1e9).double()
        assert (vector - expected).abs().max() <= 1e-5 * expected.abs().max()


@EVERY_ALGORITHM
@pytest.mark.parametrize("steps", [1, 3])
def test_a_trajectorys_vector_is_the_sum_of_mean_gradients_of_its_local_steps(name, discrete, steps):
    lengths = [5, 0, 1, 9]
    problem = problem_of(name, discrete, hidden=(8,), local=LocalUpdate(cap=100, steps=steps, learning_rate=0.2))
    units = random_units(discrete, sum(lengths), lengths=lengths)
    flat, target = random_parameters(problem, 2)
    for unit, (start, length) in enumerate(zip(units.starts, units.lengths)):
        moved, expected = flat.double(), torch.zeros(len(flat), dtype=torch.float64)
        for _ in range(steps if length else 0):
            mean = torch.stack([textbook_gradient(problem, moved, target, units, row) for row in range(start, start + length)]).mean(0)
            moved, expected = moved - 0.2 * mean, expected + mean
        vector = clipped(problem, flat, target, units, [unit], 1e9).double()
        assert (vector - expected).abs().max() <= 2e-5 * expected.abs().max()


EXTREME = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, -3e38, 1e19, 1e-30, 0.0, 88.0, -104.0]


def random_cases(algorithm, discrete, rows, seed=0):
    """(outputs, context, actions, rewards, keeps, constants) of many scales, every second row with an extreme value somewhere."""
    constants = algorithm.filled(CONSTANTS["c51"] if "atoms" in algorithm.constants else {"censored": 1} if "censored" in algorithm.constants else {})
    rng, towers = np.random.default_rng(seed), {tower.name: tower for tower in algorithm.towers(ACTIONS, constants)}
    context = sum(ACTIONS if e.gradient else towers[e.tower].outputs for e in algorithm.context)
    scales = 10.0 ** rng.integers(-3, 4, (rows, 1))
    values = (rng.standard_normal((rows, sum(t.outputs for t in towers.values()) + context + 1)) * scales).astype(np.float32)
    for row in range(0, rows, 2):
        values[row, rng.integers(values.shape[1])] = EXTREME[rng.integers(len(EXTREME))]
    actions = rng.integers(0, ACTIONS, rows) if discrete else rng.standard_normal((rows, ACTIONS)).astype(np.float32)
    outputs, rewards = np.ascontiguousarray(values[:, : values.shape[1] - context - 1]), values[:, -1].copy()
    return outputs, values[:, outputs.shape[1] : -1].copy(), actions, rewards, (rng.random(rows) > 0.3).astype(np.float32), constants


def torch_deltas(algorithm, outputs, context, actions, rewards, keeps, constants, dtype=torch.float32):
    tensors = (torch.tensor(array) for array in (outputs, context, actions, rewards, keeps))
    outputs, context, *transition = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)
    return output_deltas(algorithm.loss, constants)(outputs, context, Transition(*transition)).numpy()


WITH_DELTA = [case for case in CASES if algorithm_for(*case).delta]


@pytest.mark.parametrize("name,discrete", WITH_DELTA)
@pytest.mark.parametrize("compiled", [False, True])
def test_deltas_are_the_losses_derivatives(name, discrete, compiled):
    """In plain Python and compiled: the same numbers, and the same rows whose vectors are not finite and count as zero."""
    algorithm = algorithm_for(name, discrete)
    *arrays, constants = random_cases(algorithm, discrete, 1000)
    expected = torch_deltas(algorithm, *arrays, constants, dtype=torch.float64)
    delta = algorithm.delta
    if compiled:
        names = {**delta.__globals__, "exponential": numba.njit(bc.exponential)}
        delta = numba.njit(error_model="numpy")(types.FunctionType(delta.__code__, names))
    deltas, numbers = np.full_like(arrays[0], np.nan), np.array(list(constants.values()), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for row, case in enumerate(zip(*arrays)):
            delta(*case, numbers, deltas[row])
        counts = np.isfinite(np.square(torch_deltas(algorithm, *arrays, constants)).sum(1))
        assert np.array_equal(np.isfinite(np.square(deltas).sum(1)), counts)
        # Differences of nearly equal probabilities are exact to the rounding of 1, or of the weight that multiplies them.
        allowed = 2e-6 * np.maximum(constants.get("max_weight", 1.0), np.abs(expected).max(1, keepdims=True))
        assert (np.abs(deltas - expected) <= allowed)[counts].all()
    assert 20 < (~counts).sum() < 500


@pytest.mark.parametrize("components", [(3, 1, 11, 2), (2,) * 40, (11,) * 30], ids=["four", "forty", "thirty"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_clone_of_components_is_one_of_each(components, compiled):
    """Its loss is the sum of theirs, the mixture's is the likelihood of the whole action; compiled derivatives are the losses', and not finite where these are not."""
    rng, rows = np.random.default_rng(0), 300
    outputs = (rng.standard_normal((rows, sum(components))) * 10.0 ** rng.integers(-3, 3, (rows, 1))).astype(np.float32)
    outputs[1] /= np.abs(outputs[1]).max()
    for row in range(0, rows, 6):
        outputs[row, rng.integers(sum(components))] = (np.nan, np.inf)[row // 6 % 2]
    actions, rates, numbers = np.stack([rng.integers(0, n, rows) for n in components], 1), rng.choice([0.0, 1e-3, 0.3, 0.99], rows).astype(np.float32), np.array(components, np.float32)
    for mixture in (False, True):
        algorithm = algorithm_for("bc", True, components) if not mixture else bc.of_components(components, mixture=True)
        arrays = (outputs, np.zeros((rows, 0), np.float32), actions, rates, np.ones(rows, np.float32))
        transition, wide = Transition(torch.tensor(actions[1]), torch.tensor(rates[1]).double(), torch.tensor(1.0)), torch.tensor(outputs[1]).double()
        each = [F.cross_entropy(part, value) for part, value in zip(wide.split(components), transition.action)]
        likelihood = (1 - rates[1]) * math.exp(-sum(each)) + rates[1] / math.prod(components)
        assert algorithm.loss(wide, None, transition, {}).item() == pytest.approx(-math.log(likelihood) if mixture else sum(each).item(), rel=1e-6)
        delta = algorithm.delta
        if compiled:
            delta = numba.njit(error_model="numpy")(types.FunctionType(delta.__code__, {**delta.__globals__, "exponential": numba.njit(bc.exponential)}))
        expected, deltas = torch_deltas(algorithm, *arrays, {}, dtype=torch.float64), np.full_like(outputs, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for row, case in enumerate(zip(*arrays)):
                delta(*case, numbers, deltas[row])
        finite = np.isfinite(torch_deltas(algorithm, *arrays, {})).all(1)
        assert np.array_equal(np.isfinite(deltas).all(1), finite) and (~finite).sum() == 50 and (np.abs(deltas - expected)[finite] <= 2e-6).all()


def test_components_are_learned_by_every_engine():
    """The fused engine and the torch engine give the same policy, and it has learned."""
    components, rng = (3, 4, 1), np.random.default_rng(0)
    features = rng.uniform(-1, 1, (600, STATE)).astype(np.float32)
    actions = np.stack([(features[:, 0] > 0) + (features[:, 1] > 0), 3 * (features[:, 2] > 0), 0 * features[:, 0]], 1).astype(np.int64)
    units = Units.transitions(features, actions)
    problem = Problem(learner=Learner(learning_rate=2.0, average=0.5), inputs=STATE, actions=8, discrete=True, components=components)
    mechanism = Mechanism(sample_rate=0.5, noise_multiplier=0.3, clip_norm=0.5, steps=60, normaliser=300.0)
    one, other = (train_block(problem=problem, mechanism=mechanism, units=units, instances=[0, 1], streams=STREAMS, engine=engine) for engine in ("fused", "torch"))
    assert all(torch.allclose(one[name], other[name], atol=2e-4) for name in one)
    outputs = features @ one["0.weight"][0].numpy() + one["0.bias"][0].numpy()
    assert (np.stack([outputs[:, :3].argmax(1), outputs[:, 3:7].argmax(1)], 1) == actions[:, :2]).mean(0).min() > 0.6
    for wrong in (actions[:, :2], actions.astype(np.float32), actions + [0, 0, 1], actions - [1, 0, 0]):
        with pytest.raises(MucdError, match="those of 3 components are integers"):
            train_block(problem=problem, mechanism=mechanism, units=Units.transitions(features, wrong), instances=[0], streams=STREAMS)
    with pytest.raises(MucdError, match="'iql' is not defined for actions of 3 components"):
        Problem(learner=Learner(algorithm="iql", learning_rate=1.0), inputs=STATE, actions=8, discrete=True, components=components)


@EVERY_ALGORITHM
@settings(max_examples=20, deadline=None)
@given(row=st.integers(0, 29), seed=st.integers(0, 2**32 - 1))
def test_no_row_sees_another(name, discrete, row, seed):
    algorithm = algorithm_for(name, discrete)
    *arrays, constants = random_cases(algorithm, discrete, 30, 0)
    *others, _ = random_cases(algorithm, discrete, 30, seed)
    before = torch_deltas(algorithm, *arrays, constants)[row]
    for array, other in zip(arrays, others):
        other[row] = array[row]
    assert before.tobytes() == torch_deltas(algorithm, *others, constants)[row].tobytes()


VALUES = st.one_of(st.floats(width=32), st.sampled_from([*EXTREME, 1.0]))


@EVERY_ALGORITHM
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@settings(max_examples=15, deadline=None)
@given(
    content=st.lists(VALUES, min_size=2 * STATE + 1 + ACTIONS, max_size=2 * STATE + 1 + ACTIONS), keep=st.sampled_from([0.0, 1.0]),
    log_scale=st.integers(-12, 4), log_clip=st.integers(-6, 3), hidden=st.sampled_from([(), (8,)]),
)
def test_one_unit_of_any_content_moves_the_sum_by_at_most_the_clip_norm(name, discrete, unit, content, keep, log_scale, log_clip, hidden):
    lengths, clip_norm = [1, 2, 4, 3], 10.0**log_clip
    units = random_units(discrete, 10, lengths=lengths if unit == "trajectory" else None)
    problem = problem_of(name, discrete, hidden=hidden, local=LocalUpdate(steps=2))
    # The last row is poisoned: a unit of its own, or one of the last trajectory's three.
    content = np.array(content, np.float32)
    units.features[9], units.next_features[9] = content[:STATE], content[STATE : 2 * STATE]
    units.rewards[9], units.keeps[9] = content[2 * STATE], keep
    if not discrete:
        units.actions[9] = content[2 * STATE + 1 :]
    flat, target = random_parameters(problem, 3, 10.0**log_scale)
    everyone = list(range(len(units)))
    summed, others, alone = (clipped(problem, flat, target, units, who, clip_norm).double() for who in (everyone, everyone[:-1], everyone[-1:]))
    assert torch.isfinite(summed).all()
    assert alone.norm() <= clip_norm
    # The float32 sum over the other units is itself rounded.
    assert (summed - others).norm() <= clip_norm * (1 + 1e-6 * len(units))
    if not np.isfinite(content[:STATE]).all():
        assert not alone.any()


@EVERY_ALGORITHM
@pytest.mark.parametrize("unit", ["transition", "trajectory"])
def test_parameters_are_bit_identical_in_every_block_and_the_head_reads_row_by_row(name, discrete, unit):
    units = random_units(discrete, 300, lengths=[50, 7, 0, 43] * 3 if unit == "trajectory" else None)
    problem = problem_of(name, discrete, hidden=(8,), optimiser="adam", average=0.5, local=LocalUpdate(cap=20, steps=2))
    mechanism = Mechanism(unit=unit, sample_rate=0.4, noise_multiplier=1.0, clip_norm=0.5, steps=8, normaliser=10.0)

    def train(instances, block):
        return train_block(problem=problem, mechanism=mechanism, units=units, instances=instances, streams=STREAMS, engine="torch", block=block)

    whole, alone = train([0, 1, 2, 3, 4], 5), train([3, 1], 1)
    assert all(torch.equal(whole[layer][[3, 1]], alone[layer]) for layer in whole)
    assert not torch.equal(whole["0.weight"][0], whole["0.weight"][1])
    outputs = np.random.default_rng(0).standard_normal((6, 5, problem.network.outputs)).astype(np.float32)
    preferred = problem.preferences(outputs)
    assert preferred.shape == (6, 5, ACTIONS)
    for place in np.ndindex(6, 5):
        assert problem.preferences(outputs[place]).tobytes() == preferred[place].tobytes()
        assert problem.preferences(outputs[place][None]).tobytes() == preferred[place].tobytes()


def test_heads_are_what_the_papers_act_on():
    logits = torch.randn(5, ACTIONS, 7)
    expected = (torch.softmax(logits, -1) * torch.linspace(-2, 3, 7)).sum(-1)
    np.testing.assert_allclose(problem_of("c51", True).preferences(logits.flatten(1).numpy()), expected, rtol=1e-5, atol=1e-6)
    quantiles = torch.randn(5, ACTIONS, 5)
    np.testing.assert_allclose(problem_of("qr-dqn", True).preferences(quantiles.flatten(1).numpy()), quantiles.mean(-1), rtol=1e-5, atol=1e-6)
    outputs = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert np.array_equal(problem_of("iql", True).preferences(outputs), outputs[:, 4:])
    for name in ("iql", "td3-bc"):
        assert np.array_equal(problem_of(name, False).preferences(outputs[:, :3]), np.tanh(outputs[:, :3]))


# Learning: problems where what the data mostly does is wrong.


def chain(trajectories=300, seed=0):
    """Four states in a row; action 0, which seven of ten choose, ends with 0.1, and action 1 moves on to a reward of 1 at the end.

    The optimum is action 1 everywhere: 0.9^3 > 0.1. Cloning gives 0 everywhere, and so does maximising the immediate reward in three states.
    """
    rng, rows, lengths = np.random.default_rng(seed), [], []
    for _ in range(trajectories):
        state, start = rng.integers(4), len(rows)
        while True:
            action = int(rng.random() < 0.3)
            ends = action == 0 or state == 3
            rows.append((state, action, (1.0 if state == 3 else 0.0) if action else 0.1, min(state + 1, 3), float(not ends)))
            if ends:
                break
            state += 1
        lengths.append(len(rows) - start)
    states, actions, rewards, following, keeps = (np.array(column) for column in zip(*rows))
    one_hot = np.eye(4, dtype=np.float32)
    units = Units.transitions(
        one_hot[states], actions, next_features=one_hot[following], rewards=rewards.astype(np.float32), keeps=keeps.astype(np.float32)
    )
    return units, Units(unit="trajectory", **{**units.arrays(), "starts": np.cumsum([0, *lengths[:-1]]), "lengths": np.array(lengths)})


LEARNS = {
    "cql": {"alpha": 0.03}, "c51": {"atoms": 11, "v_min": 0.0, "v_max": 1.0}, "qr-dqn": {"quantiles": 8}, "iql": {"expectile": 0.9, "beta": 20.0},
}


def outputs_at(problem, trained, x):
    for layer in range(len(trained) // 2):
        x = torch.relu(x) if layer else x
        x = x @ trained[f"{layer}.weight"] + trained[f"{layer}.bias"][:, None]
    return problem.preferences(x.numpy())


@pytest.mark.parametrize("unit", ["transition", "trajectory"])
@pytest.mark.parametrize("name", [name for name, discrete in CASES if discrete])
def test_it_finds_the_optimum_that_the_data_mostly_misses(name, unit):
    units = chain()[unit == "trajectory"]
    constants = LEARNS.get(name, {}) | ({} if name == "bc" else {"discount": 0.9, "target_rate": 0.2})
    problem = problem_of(name, True, inputs=4, actions=2, constants=constants, optimiser="adam", learning_rate=0.05, average=0.2)
    mechanism = Mechanism(unit=unit, sample_rate=0.2, noise_multiplier=0.01, clip_norm=3.0, steps=150, normaliser=0.2 * len(units))
    trained = train_block(problem=problem, mechanism=mechanism, units=units, instances=range(2), streams=STREAMS, engine="torch")
    preferred = outputs_at(problem, trained, torch.eye(4)).argmax(-1)
    assert (preferred == (0 if name == "bc" else 1)).all()


@pytest.mark.parametrize("name", [name for name, discrete in CASES if not discrete])
def test_continuous_actions_improve_on_the_data(name):
    """Action a in state 0 leads with probability (1 + a) / 2, at a cost of 0.2, to state 1, where the best action, -0.6, is worth 1.

    Otherwise the episode ends with 0. Actions are uniform in [-1, 1]: cloning gives 0 in both states, and maximising the immediate
    reward an action below 0 in state 0.
    """
    rng, rows = np.random.default_rng(0), 1500
    actions, first = rng.uniform(-1, 1, (rows, 1)).astype(np.float32), rng.random(rows) < 0.5
    on = first & (rng.random(rows) < (1 + actions[:, 0]) / 2)
    rewards = np.where(first, np.where(on, -0.2, 0.0), 1 - np.abs(actions[:, 0] + 0.6)).astype(np.float32)
    features, following = np.eye(2, dtype=np.float32)[1 - first.astype(int)], np.eye(2, dtype=np.float32)[np.ones(rows, int)]
    units = Units.transitions(features, actions, next_features=following, rewards=rewards, keeps=on.astype(np.float32))
    constants = {"bc": {}, "iql": {"beta": 10.0, "expectile": 0.8}, "td3-bc": {"q_weight": 4.0}}[name] | ({} if name == "bc" else {"target_rate": 0.1})
    problem = problem_of(name, False, inputs=2, actions=1, constants=constants, optimiser="adam", learning_rate=0.02, average=0.2, hidden=(32,))
    mechanism = Mechanism(sample_rate=0.1, noise_multiplier=0.02, clip_norm=2.0, steps=200, normaliser=0.1 * rows)
    trained = train_block(problem=problem, mechanism=mechanism, units=units, instances=range(2), streams=STREAMS, engine="torch")
    preferred = outputs_at(problem, trained, torch.eye(2))[..., 0]
    if name == "bc":
        assert (np.abs(preferred) < 0.15).all()
    else:
        assert (preferred[:, 0] > 0.3).all() and (preferred[:, 1] < -0.3).all()


def test_atoms_in_the_wrong_order_are_refused():
    with pytest.raises(MucdError, match="v_min"):
        problem_of("c51", True, constants={"v_min": 1.0, "v_max": 1.0})


def test_an_action_at_its_bound_stands_for_all_beyond_it():
    outputs, actions = torch.tensor([[1.5, -3.0, 0.25, 2.0]]), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    transition = Transition(actions, torch.zeros(1), torch.ones(1))
    for censored, expected in ((1, [0.0, 0.0, -0.75, 3.0]), (0, [0.5, -2.0, -0.75, 3.0])):
        deltas = output_deltas(CONTINUOUS["bc"].loss, {"censored": censored})(outputs, torch.zeros(1, 0), transition)
        assert deltas.tolist() == [expected]
