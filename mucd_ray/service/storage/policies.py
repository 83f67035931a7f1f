"""The policies that a run folder holds, as one object that acts for all of them."""

from collections.abc import Iterable

import numpy as np
import torch

from mucd_ray.errors import MucdError
from mucd_ray.evaluate.policies import Policies, trained_policies
from mucd_ray.service.storage.store import RunStore, copies_that_count, instances_of


def stored_policies(store: RunStore, instances: Iterable[int]) -> Policies:
    """These instances, or parts of a partition where `store` is that of its parts, in their order. Raises MucdError as `stored_parameters`."""
    return trained_policies(store.settings().problem, stored_parameters(store, instances))


def stored_parameters(store: RunStore, instances: Iterable[int]) -> dict[str, torch.Tensor]:
    """Their parameters by name, stacked [n, ...].

    Raises:
        MucdError: some of them are missing.
    """
    wanted = list(instances)
    missing, found = set(wanted), {}
    names = [name for name in store.names() if not missing.isdisjoint(instances_of(name))]
    for _, block, places in copies_that_count((name, store.read(name)) for name in names):
        found |= {block.first + k: {key: value[k] for key, value in block.parameters.items()} for k in places if block.first + k in missing}
    if len(found) < len(missing):
        raise MucdError(f"{len(missing) - len(found)} of the {len(missing)} certified instances are missing in {store.location}: run the same `mucd run` again to mend it")
    return {name: torch.from_numpy(np.stack([found[instance][name] for instance in wanted])) for name in found[wanted[0]]}
