"""Features by name: functions of one observation, whose numbers take its place as those of an encoder do. Those of plug-ins run in this process, on the user's word alone; the package's own need none."""

import numpy as np

from mucd_ray import plugins
from mucd_ray.data.environments.card import TRANSFORMS, EnvironmentCard
from mucd_ray.data.environments.encoding import ENCODERS, SHIPPED, tried
from mucd_ray.errors import MucdError
from mucd_ray.modules import told
from mucd_ray.plugins import Plugin


def load_features(name: str, observation_shape: tuple[int, ...]) -> tuple[Plugin | None, tuple[str, int]]:
    """Load features into this process -> (the plug-in that they are of, or None for the package's own; their encoder, as cards name it).

    Raises:
        MucdError: there are no such features, they are not for such observations; of a plug-in, its import fails, or it is no function of one observation, float32 [*observation_shape], that gives numbers.
    """
    if name in SHIPPED:
        plugins.find("features", name, SHIPPED)
        shipped = SHIPPED[name]
        shipped.check(tuple(observation_shape))
        ENCODERS[shipped.sha256] = shipped.function
        return None, (shipped.sha256, tried(shipped.function, name, observation_shape))
    plugin = _installed(name)
    function = _of_one(plugin.load())
    try:
        outputs = tried(function, f"the plug-in {plugin}", observation_shape)
    except MucdError:
        raise
    except Exception as error:  # code of anybody's
        raise MucdError(f"the plug-in {plugin} gives no features ({told(error)}): it must take one observation, an array {list(observation_shape)} of float32, and give numbers") from None
    ENCODERS[plugin.sha256] = function
    return plugin, (plugin.sha256, outputs)


def load_features_of(card: EnvironmentCard) -> None:
    """Load those that the card of a run has. Whether the user has named them, if they are a plug-in's, is for the caller to see to. Raises MucdError where they are not those with which the run began."""
    assert card.named_features is not None and card.encoder is not None
    name = card.named_features
    if name not in SHIPPED and _installed(name).sha256 != card.encoder[0] or load_features(name, card.observation_shape)[1] != tuple(card.encoder):
        raise MucdError(f"the features {name} are not those with which the run began, or not the same on every node: install {f'the plug-in {_installed(name)}' if name not in SHIPPED else 'the package'} as it was, or start a new run folder")


def may_see(run: str, card: EnvironmentCard, features: str | None) -> bool:
    """Whether policies of a run see features by name. Raises MucdError unless the user names those of a plug-in: what a folder names is no reason to import it."""
    if card.named_features in SHIPPED and features is None:
        return True
    if features != card.named_features:
        if card.named_features is None:
            raise MucdError(f"--features {features}: {run} began without features by name; leave it out")
        raise MucdError(f"policies of {run} see the features {card.named_features}{'' if card.named_features in SHIPPED else ' of a plug-in, which is imported only on your word'}: add --features {card.named_features}")
    return features is not None


def _installed(name: str) -> Plugin:
    plugin = plugins.find("features", name, TRANSFORMS)
    if plugin is None:
        installed = ", ".join(plugins.listed("features"))
        raise MucdError(f"--features {name:.200} is neither {' nor '.join(SHIPPED)} nor a plug-in that is installed here, as it must be on every node: {f'there are {installed}' if installed else 'there is none'}")
    return plugin


def _of_one(function):
    def features(observation: np.ndarray) -> np.ndarray:
        try:
            # A copy: it may write there.
            return np.array(function(np.array(observation, np.float32)), np.float32).reshape(-1)
        except SystemExit as error:
            raise RuntimeError(f"SystemExit: {error}") from None

    return features
