"""The policies that a run folder holds, as one object that acts for all of them."""

from collections.abc import Callable, Iterable

import gymnasium
import numpy as np
import torch

from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import Policies, trained_policies
from mucd_ray.learn.trainers.outside import StoredPolicies
from mucd_ray.service.storage.store import Block, RunStore, copies_that_count, instances_of


def stored_policies(store: RunStore, instances: Iterable[int]) -> Policies:
    """These instances, or parts of a partition where `store` is that of its parts, in their order.

    Raises:
        MucdError: some are missing, cannot be loaded, or are objects of a Python function, which no run folder can hold.
    """
    settings, instances = store.settings(), list(instances)
    if settings.trainer is None:
        return settings.masked(trained_policies(settings.problem, stored_parameters(store, instances)))
    found = _found(store, instances, lambda block, k: (block.contents[k], block.failed is not None and bool(block.failed[k])))
    unstored = sum(not content and not failed for content, failed in found)
    if unstored:
        raise MucdError(
            f"{unstored} of the {len(instances)} policies are objects of {settings.trainer.name}, which acted while it was trained and are not stored: let it return torch modules, TorchScript or ONNX"
        )
    # Not those of an environment: a run folder's card makes none.
    shape = settings.card.observation_shape if settings.card.encoder is None else (settings.card.width,)
    observations = gymnasium.spaces.Box(0, 1, shape, np.dtype(settings.observation_dtype))
    actions: gymnasium.Space
    if settings.components:
        actions = gymnasium.spaces.MultiDiscrete(list(settings.components))
    else:
        actions = gymnasium.spaces.Discrete(settings.actions, start=settings.first_action) if settings.actions else gymnasium.spaces.Box(-np.inf, np.inf, (settings.dimensions,))
    return settings.masked(StoredPolicies([content for content, _ in found], observations, actions, settings.trainer.memory))


def stored_parameters(store: RunStore, instances: Iterable[int]) -> dict[str, torch.Tensor]:
    """Their parameters by name, stacked [n, ...]. Raises MucdError where some of them are missing."""
    ordered = _found(store, list(instances), lambda block, k: {key: value[k] for key, value in block.parameters.items()})
    return {name: torch.from_numpy(np.stack([parameters[name] for parameters in ordered])) for name in ordered[0]}


def _found(store: RunStore, instances: list[int], part: Callable[[Block, int], object]) -> list:
    """part(block, place) of these instances, in their order."""
    found: dict[int, object] = {}
    wanted = set(instances)
    names = [name for name in store.names() if not wanted.isdisjoint(instances_of(name))]
    for _, block, places in copies_that_count((name, store.read(name)) for name in names):
        found |= {block.first + k: part(block, k) for k in places if block.first + k in wanted}
    if len(found) < len(wanted):
        raise MucdError(f"{len(wanted) - len(found)} of the {len(wanted)} certified instances are missing in {store.location}: run the same `mucd run` again to mend it")
    return [found[instance] for instance in instances]
