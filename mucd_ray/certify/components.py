"""Action level, several components: the aggregated action at a state is the vector of what the components' votes single out, each by itself.

Let E_c be the event that the bounds on component c's two largest probabilities are wrong at a state; each has a probability of at most eta / k, whatever the other components do, so all k hold together with
probability 1 - eta, though they are counted of the same instances. Where they hold, no D' within r_c of D has another most probable value of component c (`action.py`). So no D' within
min r_c has another most probable vector of values. Of exact votes an attacker who changes K policies changes nothing as long as no component's winner changes, and these are K_c: the least of them, without any eta.

The least radius alone would need less: where it is wrong, that of the truly weakest component is, or some winner is not the most probable value. The radii of all components are listed beside it, and hold together.

k follows from the declared space alone. Nothing is said of how probable the vector is as a whole: there need not be a single instance that takes it.
"""

from collections.abc import Callable

import numpy as np

from mucd_ray.certify.action import ActionCertificate
from mucd_ray.certify.guarantees import Guarantees
from mucd_ray.mechanism.components import blocks


def by_component(
    certify: Callable[..., ActionCertificate], evidence: np.ndarray, components: tuple[int, ...], guarantees: Guarantees, *, eta: float, cap: int
) -> ActionCertificate:
    """What `certify` (one of `action.py`) says of each component, with an eta / k of its own: arrays [S, k] in the place of [S].

    Args:
        evidence: votes [S, n_1 + ... + n_k], or levels [S, n_1 + ... + n_k, K+1], component after component.
    """
    states, count = len(evidence), len(components)
    found = [np.zeros((states, count), kind) for kind in (np.int64, np.int64, float, float)]
    parts = blocks(evidence, components, 1)
    # Rows of one width are certified at once: each row by itself.
    for values in set(components):
        of_width = [number for number, width in enumerate(components) if width == values]
        rows = np.concatenate([certifiable(parts[number]) for number in of_width])
        certificate = certify(rows, guarantees, eta=eta / count, cap=cap)
        for array, of_rows in zip(found, (certificate.action, certificate.radius, certificate.top, certificate.runner_up)):
            array[:, of_width] = of_rows.reshape(len(of_width), states).T
    return ActionCertificate(**dict(zip(("action", "radius", "top", "runner_up"), found)))


def certifiable(evidence: np.ndarray) -> np.ndarray:
    """Evidence [S, n, ...] of at least two values: beside a single one stands another that nobody takes."""
    if evidence.shape[1] > 1:
        return evidence
    other = np.zeros_like(evidence)
    if evidence.ndim == 3:
        other[..., 0] = evidence.sum(-1)
    return np.concatenate([evidence, other], axis=1)
