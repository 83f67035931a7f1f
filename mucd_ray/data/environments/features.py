"""Features of plug-ins: functions of one observation, whose numbers take its place as those of an encoder do. They run in this process, on the user's word alone."""

import numpy as np

from mucd_ray import plugins
from mucd_ray.data.environments.card import TRANSFORMS, EnvironmentCard
from mucd_ray.data.environments.encoding import ENCODERS, tried
from mucd_ray.errors import MucdError
from mucd_ray.modules import told
from mucd_ray.plugins import Plugin


def load_features(name: str, observation_shape: tuple[int, ...]) -> tuple[Plugin, int]:
    """Load the features of an installed plug-in into this process -> (it, how many numbers they are).

    Raises:
        MucdError: there is no such plug-in, its import fails, or it is no function of one observation, float32 [*observation_shape], that gives numbers.
    """
    plugin = _installed(name)
    function = _of_one(plugin.load())
    try:
        outputs = tried(function, f"the plug-in {plugin}", observation_shape)
    except MucdError:
        raise
    except Exception as error:  # code of anybody's
        raise MucdError(f"the plug-in {plugin} gives no features ({told(error)}): it must take one observation, an array {list(observation_shape)} of float32, and give numbers") from None
    ENCODERS[plugin.sha256] = function
    return plugin, outputs


def load_features_of(card: EnvironmentCard) -> None:
    """Load those that the card of a run has. Whether the user has named them is for the caller to see to. Raises MucdError where they are not those with which the run began."""
    assert card.named_features is not None and card.encoder is not None
    plugin = _installed(card.named_features)
    if plugin.sha256 != card.encoder[0] or load_features(plugin.name, card.observation_shape)[1] != card.encoder[1]:
        raise MucdError(f"the plug-in {plugin} is not the one with which the run began, or not the same on every node: install it as it was, or start a new run folder")


def may_see(run: str, card: EnvironmentCard, features: str | None) -> bool:
    """Whether policies of a run see the features of a plug-in. Raises MucdError unless these are the ones that the user names: what a folder names is no reason to import it."""
    if features != card.named_features:
        if card.named_features is None:
            raise MucdError(f"--features {features}: {run} began without features of a plug-in; leave it out")
        raise MucdError(f"policies of {run} see features of a plug-in, which is imported only on your word: add --features {card.named_features}")
    return features is not None


def _installed(name: str) -> Plugin:
    plugin = plugins.find("features", name, TRANSFORMS)
    if plugin is None:
        installed = ", ".join(plugins.listed("features"))
        raise MucdError(f"--features {name:.200} is no plug-in that is installed here, as it must be on every node: {f'there are {installed}' if installed else 'there is none'}")
    return plugin


def _of_one(function):
    def features(observation: np.ndarray) -> np.ndarray:
        try:
            # A copy: it may write there.
            return np.array(function(np.array(observation, np.float32)), np.float32).reshape(-1)
        except SystemExit as error:
            raise RuntimeError(f"SystemExit: {error}") from None

    return features
