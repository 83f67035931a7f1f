"""The registry: an algorithm's name, and what it is for each kind of action."""

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
NAMES = tuple(dict.fromkeys([*DISCRETE, *CONTINUOUS]))


def algorithm_for(name: str, discrete: bool) -> Algorithm:
    """The algorithm of this name for discrete or continuous actions.

    Raises:
        MucdError: it is unknown, or not defined for this kind of action.
    """
    registry = DISCRETE if discrete else CONTINUOUS
    if name not in NAMES:
        raise MucdError(f"algorithm {name!r} is unknown: use one of {', '.join(NAMES)}")
    if name not in registry:
        kind = "discrete" if discrete else "continuous"
        raise MucdError(f"algorithm {name!r} is not defined for {kind} actions: use one of {', '.join(registry)}")
    return registry[name]
