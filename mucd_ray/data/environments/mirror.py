"""A mirror of an environment: what is true of an episode is true of its mirror image, so a learner may be shown both."""

from dataclasses import dataclass

import numpy as np

from mucd_ray.errors import MucdError


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """A public symmetry of dynamics and rewards, exact or nearly so; undone by itself. A wrong one costs return, never soundness.

    Attributes:
        observation: signed numbers, counted from 1, of the entries of a flattened observation [d]: entry i of the image is the entry |observation[i]|, with its sign.
        actions: of discrete actions the image of each, counted from 0, [A]; of continuous ones signed numbers of their entries, counted from 1, [k].

    Raises:
        MucdError: not a permutation, or not undone by itself.
    """

    observation: tuple[int, ...]
    actions: tuple[int, ...]

    def __post_init__(self):
        for name, signed in (("observation", True), ("actions", not self.of_discrete)):
            values = getattr(self, name)
            if not all(type(value) is int for value in values) or sorted(abs(value) if signed else value for value in values) != list(range(signed, len(values) + signed)):
                raise MucdError(f"mirror of {name} {list(values)!r:.200} must name every entry once, with its sign and counted from 1 (discrete actions without signs, from 0)")
            image = np.arange(1.0, len(values) + 1)
            if not np.array_equal(_image(_image(image, values, signed), values, signed), image):
                raise MucdError(f"mirror of {name} {list(values)!r:.200} must be undone by itself")

    @property
    def of_discrete(self) -> bool:
        return 0 in self.actions

    def observations(self, flat: np.ndarray) -> np.ndarray:
        """The images of flattened observations [..., d], in their own dtype.

        Raises:
            MucdError: bytes that have no negative.
        """
        if flat.dtype == np.uint8 and min(self.observation) < 0:
            raise MucdError(f"mirror of observation {list(self.observation)!r:.200} has negatives, and these observations are bytes: correct the card")
        return _image(flat, self.observation, signed=True)

    def images_of_actions(self, actions: np.ndarray) -> np.ndarray:
        """Of discrete ones, integers [N] from 0, or of continuous ones [N, k]."""
        return np.array(self.actions, actions.dtype)[actions] if self.of_discrete else _image(actions, self.actions, signed=True)

    def check(self, *, width: int, actions: int, discrete: bool, bounds: tuple | None) -> None:
        """Raise MucdError unless it is a mirror of these observations [width] and actions: so many discrete ones, or of so many numbers within (low, high)."""
        if (len(self.observation), len(self.actions), self.of_discrete) != (width, actions, discrete):
            kind = "discrete actions" if discrete else "numbers of an action"
            raise MucdError(f"mirror has {len(self.observation)} entries and {len(self.actions)} actions, the environment {width} entries and {actions} {kind}: correct the card")
        if bounds is not None:
            low, high = (np.array(bound) for bound in bounds)
            images = np.stack([_image(low, self.actions, signed=True), _image(high, self.actions, signed=True)])
            if not (np.array_equal(images.min(0), low) and np.array_equal(images.max(0), high)):
                raise MucdError(f"mirror of actions {list(self.actions)} leaves the action bounds {bounds}: correct the card")


def _image(values: np.ndarray, numbers: tuple[int, ...], signed: bool) -> np.ndarray:
    order = np.abs(numbers) - signed
    return values[..., order] * np.sign(numbers).astype(values.dtype) if signed else values[..., order]
