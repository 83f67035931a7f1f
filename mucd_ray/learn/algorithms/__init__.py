"""The registry: an algorithm's name, and what it is for each kind of action."""

from collections.abc import Callable

from mucd_ray.errors import MucdError
from mucd_ray.learn.algorithm import Algorithm
from mucd_ray.learn.algorithms import bc, c51, cql, dqn, dt, iql, qr_dqn, rvs, td3_bc

DISCRETE: dict[str, Algorithm] = {
    "bc": bc.DISCRETE,
    "dqn": dqn.DQN,
    "double-dqn": dqn.DOUBLE_DQN,
    "cql": cql.DISCRETE,
    "c51": c51.DISCRETE,
    "qr-dqn": qr_dqn.DISCRETE,
    "iql": iql.DISCRETE,
    "rvs": rvs.DISCRETE,
    "dt": dt.DISCRETE,
}
CONTINUOUS: dict[str, Algorithm] = {
    "bc": bc.CONTINUOUS,
    "iql": iql.CONTINUOUS,
    "td3-bc": td3_bc.CONTINUOUS,
    "rvs": rvs.CONTINUOUS,
    "dt": dt.CONTINUOUS,
}
# From how many values each component of an action may have.
COMPONENTS: dict[str, Callable[[tuple[int, ...]], Algorithm]] = {"bc": bc.of_components}
NAMES = tuple(dict.fromkeys([*DISCRETE, *CONTINUOUS]))


def algorithm_for(name: str, discrete: bool, components: tuple[int, ...] = ()) -> Algorithm:
    """The algorithm of this name for discrete or continuous actions, or for those of several components.

    Raises:
        MucdError: it is unknown, or not defined for this kind of action.
    """
    registry = DISCRETE if discrete else CONTINUOUS
    if name not in NAMES:
        raise MucdError(f"algorithm {name!r} is unknown: use one of {', '.join(NAMES)}")
    if components:
        if name not in COMPONENTS:
            raise MucdError(
                f"algorithm {name!r} is not defined for actions of {len(components)} components, which are too many combinations to be one discrete action: use {', '.join(COMPONENTS)}, or a trainer of your own"
            )
        return COMPONENTS[name](components)
    if name not in registry:
        kind = "discrete" if discrete else "continuous"
        raise MucdError(f"algorithm {name!r} is not defined for {kind} actions: use one of {', '.join(registry)}")
    return registry[name]
