"""The non-private learner: the same network and loss, plain minibatch Adam. A baseline, covered by no certificate."""

import numpy as np
import torch

from mucd_ray.learn.learner import Adam, Learner
from mucd_ray.learn.losses import loss_for, output_deltas
from mucd_ray.learn.networks import Network, as_module, initial_parameters, named_parameters


def train_nonprivate(
    *,
    network: Network,
    algorithm: str,
    features: np.ndarray,
    actions: np.ndarray,
    seeds: list[int],
    steps: int = 2000,
    batch: int = 512,
    learning_rate: float = 0.01,
) -> dict[str, torch.Tensor]:
    """Train one policy per seed on minibatches drawn with replacement; the mean of the last half of the iterates is kept.

    Args:
        features: float32 [N, inputs]; actions: as `losses.training_targets` gives them; never written to.
        seeds: public seeds, one policy each.

    Returns:
        Parameters stacked [len(seeds), ...], as from `train_block`.
    """
    loss, learner = loss_for(algorithm, actions), Learner(optimiser="adam", learning_rate=learning_rate)
    flat = torch.stack([_train(network, loss, learner, features, actions, seed, steps, batch) for seed in seeds])
    return named_parameters(network, flat)


def _train(network, loss, learner, features, actions, seed, steps, batch) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    module = as_module(network, initial_parameters(network, rng))
    parameters = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    optimiser, deltas_of = Adam(learner, parameters), output_deltas(loss)
    total = torch.zeros_like(parameters, dtype=torch.float64)
    for step in range(steps):
        rows = rng.integers(len(features), size=min(batch, len(features)))
        outputs = module(torch.from_numpy(features[rows]))
        # The loss is a sum over units, so its gradient by the parameters follows from the units' deltas.
        deltas = deltas_of(outputs.detach(), torch.from_numpy(actions[rows])) / len(rows)
        gradients = torch.autograd.grad(outputs, list(module.parameters()), deltas)
        optimiser.step(parameters, torch.nn.utils.parameters_to_vector(gradients), step)
        torch.nn.utils.vector_to_parameters(parameters, module.parameters())
        if step >= steps // 2:
            total += parameters
    return (total / (steps - steps // 2)).to(torch.float32)
