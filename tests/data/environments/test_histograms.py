"""Gradient histograms: what they must be of simple images, and of one image in every layout."""

import numpy as np
import pytest

from mucd_ray.data.environments.histograms import CELL, DIRECTIONS, check_image, gradient_histograms
from mucd_ray.errors import MucdError


def ramp(turn: float) -> np.ndarray:
    """An image whose square roots rise steadily in one direction, of `turn` of a full turn (x to the right, y downwards)."""
    y, x = np.indices((16, 16)) - 7.5
    rise = 0.5 + 0.03 * (np.cos(2 * np.pi * turn) * x + np.sin(2 * np.pi * turn) * y)
    return 255 * rise**2


@pytest.mark.parametrize("direction", range(DIRECTIONS))
def test_a_ramp_has_all_of_its_gradient_in_its_direction(direction):
    cells = gradient_histograms(ramp(direction / DIRECTIONS)).reshape(4, 4, DIRECTIONS)
    inner = cells[1:-1, 1:-1]
    assert np.isclose(inner[..., direction], inner[..., direction].max(), rtol=0.1).all() and (np.delete(inner, direction, axis=2) < 0.2 * inner[..., direction].min()).all()
    # Half way between two directions both have the same.
    between = gradient_histograms(ramp((direction + 0.5) / DIRECTIONS)).reshape(4, 4, DIRECTIONS)[1:-1, 1:-1]
    assert np.allclose(between[..., direction], between[..., (direction + 1) % DIRECTIONS], rtol=1e-3)


def test_one_image_in_every_layout_has_the_same():
    image = np.random.default_rng(0).integers(0, 256, (12, 8)).astype(np.uint8)
    found = gradient_histograms(image)
    assert found.shape == (3 * 2 * DIRECTIONS,) and found.dtype == np.float32 and 0 <= found.min() and found.max() <= 1
    # A channel without contrast counts nowhere, wherever the channels stand.
    for channels in ([image, np.full_like(image, 9)], [np.zeros_like(image), image, image]):
        assert (gradient_histograms(np.stack(channels)) == found).all() and (gradient_histograms(np.stack(channels, axis=-1).astype(np.float32)) == found).all()
    assert not gradient_histograms(np.full((CELL, CELL), 200)).any()


@pytest.mark.parametrize("shape", [(4,), (28, 3), (3, 3, 28), (5, 28, 28), (2, 3, 28, 28)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(MucdError, match="gradient-histograms is for images"):
        check_image(shape)
    check_image((84, 84, 4)), check_image((3, 32, 32)), check_image((28, 28))
