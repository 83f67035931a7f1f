"""The same mechanism for any `nn.Module`: per-unit gradients from Opacus; sampling, clipping, noise and normaliser from us.

Opacus' own loop takes q and the normaliser from len(dataset), lets a NaN or 1e30 gradient through its clip, and draws noise
from a generator with 32 seed bits. Here only its per-sample gradients are used.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from mucd_ray.errors import MucdError
from mucd_ray.learn import streams as purposes
from mucd_ray.learn.clipping import clip_factors
from mucd_ray.learn.learner import OPTIMISERS, Learner
from mucd_ray.learn.losses import Loss
from mucd_ray.learn.streams import Streams, gaussian_noise, poisson_sample
from mucd_ray.mechanism.mechanism import Mechanism

# Units whose gradients are held at a time; the sum over a batch is accumulated.
UNITS_AT_A_TIME = 512


def train_opacus(
    module_factory: Callable[[np.random.Generator], nn.Module],
    loss: Loss,
    learner: Learner,
    mechanism: Mechanism,
    features: np.ndarray,
    actions: np.ndarray,
    instance: int,
    streams: Streams,
) -> nn.Module:
    """Train one instance of any module whose layers Opacus supports.

    Args:
        module_factory: makes the module from a generator, which must be its only source of initial parameters.
        loss: pure function of one unit's output and action, see `losses`.
        learner: optimiser, learning rate, momentum and averaging; its algorithm and hidden layers are not read.
        mechanism: the public randomness, with unit "transition".
        features: [N, ...], what the module takes; actions: [N, ...]; never written to.
        instance, streams: the source of all randomness. Modules with random layers (dropout) draw from torch's own state.

    Returns:
        The trained module, in evaluation mode.

    Raises:
        MucdError: the module mixes units (BatchNorm) or has layers that Opacus does not support, or no trainable parameter.
    """
    if mechanism.unit != "transition":
        raise MucdError(f"unit {mechanism.unit!r} is not trained by this engine: use unit 'transition'")
    module = module_factory(streams.generator(instance, 0, purposes.INITIALISE)).train()
    problems = ModuleValidator.validate(module, strict=False)
    if problems:
        raise MucdError(f"the module cannot be trained privately ({problems[0]}): replace this layer, BatchNorm by GroupNorm")
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise MucdError("the module has no trainable parameter: give one that has")
    wrapped = GradSampleModule(module, loss_reduction="sum")
    parameters = torch.nn.utils.parameters_to_vector(trainable).detach().clone()
    optimiser = OPTIMISERS[learner.optimiser](learner, parameters)
    averaged = learner.averaged_steps(mechanism.steps)
    total = torch.zeros_like(parameters, dtype=torch.float64)
    for step in range(mechanism.steps):
        sample = poisson_sample(streams.generator(instance, step, purposes.SAMPLE), len(features), mechanism.sample_rate)
        summed = torch.zeros_like(parameters)
        for start in range(0, len(sample), UNITS_AT_A_TIME):
            rows = sample[start : start + UNITS_AT_A_TIME]
            # Indexing copies, so the caller's arrays are safe from in-place layers.
            x, targets = torch.from_numpy(features[rows]), torch.from_numpy(actions[rows])
            summed += _clipped_sum(wrapped, trainable, loss, x, targets, mechanism.clip_norm)
        generator = streams.generator(instance, step, purposes.NOISE)
        noise = torch.from_numpy(gaussian_noise([generator], len(parameters))[0])
        noisy = noise.mul_(mechanism.noise_multiplier * mechanism.clip_norm).add_(summed)
        optimiser.step(parameters, noisy.div_(mechanism.normaliser), step)
        torch.nn.utils.vector_to_parameters(parameters, trainable)
        if step >= mechanism.steps - averaged:
            total += parameters
    if averaged:
        torch.nn.utils.vector_to_parameters((total / averaged).to(torch.float32), trainable)
    wrapped.remove_hooks()
    return module.eval()


def _clipped_sum(wrapped: GradSampleModule, trainable, loss: Loss, x: Tensor, targets: Tensor, clip_norm: float) -> Tensor:
    """Sum of the units' clipped gradients, flat [D]; a unit with any non-finite component counts as zero."""
    wrapped.zero_grad(set_to_none=True)
    outputs = wrapped(x)
    with warnings.catch_warnings():
        # The inputs are data and need no gradient.
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        torch.func.vmap(loss)(outputs, targets).sum().backward()
    per_unit = torch.cat([parameter.grad_sample.flatten(1) for parameter in trainable], 1)
    norms = torch.square(per_unit).sum(1)
    per_unit.masked_fill_(~torch.isfinite(norms)[:, None], 0.0)
    return clip_factors(norms, clip_norm) @ per_unit
