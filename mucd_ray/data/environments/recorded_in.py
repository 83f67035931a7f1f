"""Whether a dataset was recorded in the environment that a card makes: a comparison of words, whatever their spelling.

Nothing here makes or imports what a dataset names. Ids are looked up in what Gymnasium has registered already.
"""

import inspect
import json

import gymnasium as gym

from mucd_ray.data.dataset import OfflineDataset
from mucd_ray.data.environments.make import spec_of
from mucd_ray.errors import MucdError

# Wrappers that change neither observations, actions, rewards nor, beyond a time limit that is compared, the ends of episodes.
HARMLESS = {
    "TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "Autoreset", "RecordVideo", "HumanRendering", "RenderCollection", "DataCollector",
}
# Arguments that change how an environment is drawn, not what is recorded.
_DRAWING = {"render_mode", "width", "height", "camera_id", "camera_name", "default_camera_config", "visual_options"}
_MOST_TEXT = 100


def name_of(env_id: str) -> str:
    """The id without the module that registers it: `module:Name-v0` and `Name-v0` are one environment."""
    return env_id.rpartition(":")[2]


def same_environment(first: str, second: str) -> bool:
    """Whether two ids name one environment: the same name, or two registered ones of the same function, wrappers and time limit, whose
    arguments remain to be compared."""
    if name_of(first) == name_of(second):
        return True
    one, other = (gym.registry.get(name_of(env_id)) for env_id in (first, second))
    if one is None or other is None or one.entry_point is None:
        return False
    return all(getattr(one, field) == getattr(other, field) for field in ("entry_point", "additional_wrappers", "max_episode_steps"))


def is_alias(env_id: str, other: str, kwargs: dict) -> bool:
    """Whether an id is registered with just the arguments that another one has when it is made with `kwargs`."""
    ours, theirs = (gym.registry.get(name_of(name)) for name in (env_id, other))
    return ours is not None and theirs is not None and same_environment(env_id, other) and ours.kwargs == theirs.kwargs | kwargs


def other_version(first: str, second: str) -> bool:
    """Whether two ids name versions of one environment, as HalfCheetah-v4 and HalfCheetah-v5 do."""
    return name_of(first).rpartition("-v")[0] == name_of(second).rpartition("-v")[0] != ""


def check_environment_id(dataset: OfflineDataset, env_id: str) -> None:
    """Raise MucdError if the dataset says that it was recorded in another environment than this."""
    if dataset.env_id is not None and not same_environment(dataset.env_id, env_id):
        raise MucdError(
            f"dataset {dataset.name} was recorded in {dataset.env_id}, not in {env_id}: "
            + (f"record it again in {env_id}, or give a card of {dataset.env_id} with --card FILE" if other_version(dataset.env_id, env_id) else f"use the card of {dataset.env_id}")
        )


def check_arguments(dataset: OfflineDataset, environment: gym.Env) -> None:
    """Raise MucdError if the dataset was recorded with other arguments, wrappers or another time limit than this environment has, which is of its id."""
    spec = spec_of(environment)
    recorded, made = _arguments(dataset, environment)
    for name in sorted(set(recorded) | set(made)):
        values = [_plain(arguments.get(name, _MISSING)) for arguments in (recorded, made)]
        if dataset.env_kwargs is not None and name not in _DRAWING and values[0] != values[1]:
            words = [f"{name}={value!r:.{_MOST_TEXT}}" if value is not _MISSING else f"no {name}" for value in values]
            raise MucdError(
                f"dataset {dataset.name} was recorded in {dataset.env_id or spec.id} with {words[0]}, the card makes it with {words[1]}: record it again, or give a "
                "card whose make_kwargs are the recorded ones with --card FILE, or name them with --make-kwargs"
            )
    ours = {wrapper.name for wrapper in spec.additional_wrappers}
    foreign = [name for name in dataset.env_wrappers if name not in HARMLESS | ours]
    if foreign:
        raise MucdError(
            f"dataset {dataset.name} was recorded through the wrapper {foreign[0]}, which the card of {spec.id} does not have: record it again without, or "
            "give a card with that wrapper"
        )


def check_time_limit(dataset: OfflineDataset, env_id: str, limit: int, by_card: bool) -> None:
    """Raise MucdError if episodes end after another number of steps than where the dataset was recorded.

    Args:
        limit: steps of the card's environment.
        by_card: whether the card shortens episodes; then longer recorded ones are what its writer wants cut.
    """
    recorded = dataset.env_max_episode_steps
    if recorded is None or recorded == limit or by_card and recorded > limit:
        return
    raise MucdError(
        f"dataset {dataset.name} was recorded in {env_id} with at most {recorded} steps an episode, the card makes it with {limit}: record it again, or give a card "
        + (f"with max_episode_steps {recorded}" if recorded < limit else "whose make_kwargs have that max_episode_steps") + " with --card FILE" + (f", or --max-episode-steps {recorded}" if recorded < limit else "")
    )


_MISSING = object()


def _arguments(dataset: OfflineDataset, environment: gym.Env) -> tuple[dict, dict]:
    """All arguments, (as recorded, as made), with those that are registered with the id and the defaults of the environment's own code."""
    registered = gym.registry.get(name_of(dataset.env_id or ""))
    recorded = (registered.kwargs if registered else {}) | (dataset.env_kwargs or {})
    defaults: dict = {}
    for kind in reversed(type(environment.unwrapped).__mro__):
        if "__init__" in vars(kind):
            made_by = vars(kind)["__init__"]
            parameters = inspect.signature(made_by).parameters.values() if inspect.isfunction(made_by) else ()
            defaults |= {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    made = spec_of(environment).kwargs
    known = {name: value for name, value in defaults.items() if name in recorded or name in made}
    return known | recorded, known | made


def _plain(value):
    """As it would stand in JSON."""
    return value if value is _MISSING else json.loads(json.dumps(value, default=str))
