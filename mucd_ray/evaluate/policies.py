"""Many trained policies as one object that acts for all of them at once.

Votes, levels, rollouts and searches know no more of policies than `Policies` says; how they were trained, and whether they run in this process, is not seen.
"""

from typing import Protocol

import gymnasium
import numpy as np
import torch

from mucd_ray.errors import MucdError
from mucd_ray.learn.networks import Network, stacked_layers
from mucd_ray.learn.problem import Problem
from mucd_ray.learn.scores import components_of
from mucd_ray.mechanism.components import best, blocks


class Policies(Protocol):
    """P policies, numbered 0..P-1, each a function of one observation alone: what it prefers there depends on no other row, policy or call before.

    A new kind of policies has these two methods: rows of features are those of the environment's card, and what is preferred at a row is one score per discrete action, the
    largest of which acts (of actions of several components one for each of their values, component after component), or the unclipped continuous action. Where a policy fails, its row is NaN: it then takes the default action (`greedy_actions`, `clipped_actions`).
    A policy that names a discrete action without scores has those of `learn.scores.scores_of`.
    """

    def __len__(self) -> int:
        """P."""

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        """What policy index[s] prefers at features[s], or policy index[0] at all of them: float32 [S, d], int [S] or [1] -> floats [S, A or k]."""


def outputs_of_all(policies: Policies, features: np.ndarray) -> np.ndarray:
    """What every policy prefers at every row: float32 [S, d] -> [P, S, A or k], each pair as by `Policies.outputs`."""
    together = getattr(policies, "outputs_of_all", None)
    if together is not None:
        return together(features)
    return np.stack([policies.outputs(features, np.array([policy])) for policy in range(len(policies))])


class StackedPolicies:
    """P deterministic policies with the parameters that `train_block` returns.

    Args:
        network: the shape of every policy.
        parameters: {"0.weight": [P, in, out], "0.bias": [P, out], ...}.
        problem: what was learned: features are embedded and outputs read as it says. None for plain networks.

    Raises:
        MucdError: the parameters are not those of `network`.
    """

    def __init__(self, network: Network, parameters: dict[str, torch.Tensor], problem: Problem | None = None):
        self.network, self.problem = network, problem
        self._layers = []
        for weight, bias in stacked_layers(network, parameters):
            # One contiguous [P, out] array per input, see `outputs`.
            by_input = np.ascontiguousarray(weight.detach().cpu().numpy().transpose(1, 0, 2))
            self._layers.append((by_input, bias.detach().cpu().numpy()))

    def __len__(self) -> int:
        return len(self._layers[0][1])

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        """What policy index[s] prefers at features[s]: scores [S, A] or actions [S, k]; float32 [S, inputs], int [S] -> floats.

        An index of shape [1] means the same policy everywhere.

        Terms are added input by input. A matrix product may round differently from one batch size to the next, and a rollout
        must not depend on which other environments run beside it.
        """
        x = features if self.problem is None else self.problem.embed(features)
        # Parameters may be anything: what they overflow to is read by the functions below.
        with np.errstate(over="ignore", invalid="ignore"):
            for layer, (weight, bias) in enumerate(self._layers):
                if layer:
                    x = np.maximum(x, 0.0)
                total = np.repeat(bias[index], len(x) // len(index), axis=0)
                for column, by_input in zip(x.T, weight):
                    total += column[:, None] * by_input[index]
                x = total
            return x if self.problem is None else self.problem.preferences(x)

    def outputs_of_all(self, features: np.ndarray) -> np.ndarray:
        """What every policy prefers at every row: float32 [S, inputs] -> [P, S, A or k], bit for bit what `outputs` says of each pair."""
        x = (features if self.problem is None else self.problem.embed(features))[None]
        with np.errstate(over="ignore", invalid="ignore"):
            for layer, (weight, bias) in enumerate(self._layers):
                if layer:
                    x = np.maximum(x, 0.0)
                total = np.repeat(bias[:, None], x.shape[1], axis=1)
                terms = np.empty_like(total)
                for column, by_input in zip(np.moveaxis(x, -1, 0), weight):
                    total += np.multiply(column[..., None], by_input[:, None], out=terms)
                x = total
            return x if self.problem is None else self.problem.preferences(x)

class ModulePolicies:
    """The same for P copies of a module, with the parameters that `train_block` returns for one. Rows go through one by one, since a
    convolution may round differently from one batch size to the next."""

    def __init__(self, problem: Problem, parameters: dict[str, torch.Tensor]):
        self.problem, self.module = problem, problem.module(np.random.default_rng(0)).eval()
        self.parameters = {name: torch.as_tensor(stacked) for name, stacked in parameters.items()}
        torch.set_num_threads(1)

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        rows, index = torch.from_numpy(features), np.broadcast_to(index, len(features))
        with torch.no_grad():
            outputs = [
                torch.func.functional_call(self.module, {name: stacked[policy] for name, stacked in self.parameters.items()}, (row[None],))[0]
                for row, policy in zip(rows, index.tolist())
            ]
        with np.errstate(over="ignore", invalid="ignore"):
            return self.problem.preferences(torch.stack(outputs).numpy())

def trained_policies(problem: Problem, parameters: dict[str, torch.Tensor]) -> Policies:
    """The policies that `train_block` or `train_nonprivate` returned the parameters of."""
    return StackedPolicies(problem.network, parameters, problem) if problem.module_factory is None else ModulePolicies(problem, parameters)


# exp of minus this is 0 in every precision.
SURE = 1e4


class MaskedPolicies:
    """Policies whose observations tell which actions are allowed: of these each takes the one that it prefers.

    What a policy does is a function of its own outputs and of the observation alone, by a public rule: among the allowed actions the largest score, the lowest of ties. A policy that names an action
    which is not allowed, or fails, takes the lowest that is. Where none is allowed, all are.

    Args:
        policies: with one score per discrete action.
        first: in a row of features the first of as many entries as there are actions, above 0 where the action is allowed.
    """

    def __init__(self, policies: Policies, first: int):
        self.policies, self.first = policies, first

    def __len__(self) -> int:
        return len(self.policies)

    def outputs(self, features: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `Policies`: float64 [S, A], at most 0, and 0 at the action that is taken."""
        return self._allowed(self.policies.outputs(features, index), features)

    def outputs_of_all(self, features: np.ndarray) -> np.ndarray:
        """float64 [P, S, A], as `outputs` of each pair."""
        return self._allowed(outputs_of_all(self.policies, features), features)

    def _allowed(self, outputs: np.ndarray, features: np.ndarray) -> np.ndarray:
        allowed = features[:, self.first : self.first + outputs.shape[-1]] > 0
        allowed = np.broadcast_to(allowed | ~allowed.any(-1, keepdims=True), outputs.shape)
        failed = ~np.isfinite(outputs).all(-1, keepdims=True)
        # In double precision differences of single ones are finite. Who fails prefers the lowest.
        scores = np.where(failed, -SURE * np.arange(outputs.shape[-1]), outputs.astype(np.float64))
        best = np.where(allowed, scores, -np.inf).max(-1, keepdims=True)
        with np.errstate(over="ignore"):
            return np.where(allowed, np.maximum(scores - best, -np.finfo(np.float64).max), -SURE)


# A policy whose outputs at a state are not all finite acts as if it preferred the lowest action there. Dropping it would choose
# among instances by their training data, which no certificate covers.


def greedy_actions(outputs: np.ndarray, components: tuple[int, ...] = ()) -> np.ndarray:
    """Scores [..., A] -> the preferred action, counted from 0, int64 [...], or of several components [..., k]; ties go to the lowest, as do outputs that are not finite: in all components, wherever they are."""
    finite = np.isfinite(outputs).all(-1)
    return np.where(finite[..., None] if components else finite, best(outputs, components), 0)


def scores_of(actions: np.ndarray, count: int) -> np.ndarray:
    """Scores float64 [..., count] of policies that just act, by actions counted from 0, int [...]: the chosen one has all of the softmax probability.

    What is no action of 0..count-1 is a failure: NaN.
    """
    actions = np.asarray(actions)
    scores = np.where(np.arange(count) == actions[..., None], 0.0, -SURE)
    return np.where(((actions >= 0) & (actions < count))[..., None], scores, np.nan)


def softmax_probabilities(outputs: np.ndarray, components: tuple[int, ...] = ()) -> np.ndarray:
    """Scores [..., A] -> probabilities of the actions, or of each component's values, float64 [..., A]; 0 for every action where an output is not finite."""
    finite = np.isfinite(outputs).all(-1, keepdims=True)
    logits = np.where(finite, outputs, 0.0).astype(np.float64)
    weights = [np.exp(part - part.max(-1, keepdims=True)) for part in (blocks(logits, components) if components else [logits])]
    return np.where(finite, np.concatenate([part / part.sum(-1, keepdims=True) for part in weights], -1), 0.0)


def clipped_actions(action_space: gymnasium.spaces.Box, outputs: np.ndarray) -> np.ndarray:
    """Unclipped actions [..., k] -> actions [..., k] within the bounds, in the space's dtype; not finite outputs give the lower bound, or 0 without one."""
    low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
    finite = np.isfinite(outputs).all(-1, keepdims=True)
    return np.clip(np.where(finite, outputs, np.where(np.isfinite(low), low, 0.0)), low, high).astype(action_space.dtype)


def environment_actions(action_space: gymnasium.Space, outputs: np.ndarray) -> np.ndarray:
    """What policies prefer [S, out] as actions of the environment: the greedy one, or the clipped one.

    Raises:
        MucdError: the space is none of Discrete, MultiDiscrete (which counts from 0) and Box.
    """
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return greedy_actions(outputs) + int(action_space.start)
    if isinstance(action_space, gymnasium.spaces.MultiDiscrete):
        return greedy_actions(outputs, components_of(action_space))
    if isinstance(action_space, gymnasium.spaces.Box):
        return clipped_actions(action_space, outputs).reshape(len(outputs), *action_space.shape)
    raise MucdError(f"action space {action_space} is not supported: Discrete, MultiDiscrete and Box are")
