"""A small convolutional network for images, trained by `engines/modules.py` with noise and by `engines/plain.py` without."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from mucd_ray.errors import MucdError

FRAMES = (4, 42, 42)
# (filters, kernel, stride) of both convolutions: as Mnih et al. 2013 for screens, and for the small grids that are no picture.
SCREEN, GRID = ((16, 8, 4), (32, 4, 2)), ((16, 3, 1), (32, 3, 1))
LEAST_SCREEN, LEAST_GRID = 20, 5


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an image's channels are its last axis: the shorter of first and last one, the first where both are equal."""
    return len(shape) == 3 and shape[2] < shape[0]


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of observations of this shape: [H, W], [C, H, W] or [H, W, C].

    Raises:
        MucdError: it is no image, or too small a one.
    """
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or min(sorted(shape)[1:]) < LEAST_GRID:
        raise MucdError(f"a convolutional network wants images of at least {LEAST_GRID} x {LEAST_GRID}, these observations have shape {tuple(shape)}: record with --frames, or use a dense network")
    return (shape[2], shape[0], shape[1]) if channels_last(shape) else (shape[0], shape[1], shape[2])


class ChannelsFirst(nn.Module):
    """Images [B, H, W, C] -> [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def convolutional(outputs: int, shape: tuple[int, ...] = FRAMES) -> Callable[[np.random.Generator], nn.Module]:
    """Factory of networks from rows of flattened images [B, prod(shape)] to [B, outputs].

    Two convolutions without padding (16 filters of 8 x 8 with stride 4 and 32 of 4 x 4 with stride 2, or both of 3 x 3 where a side is below 20) and a linear
    layer, with ReLU between; no layer mixes rows. Every weight and bias is uniform in +-1/sqrt(number of inputs of its unit) from the given generator.

    Raises:
        MucdError: observations of this shape are no images.
    """
    channels, *sides = image_shape(shape)
    unflatten = [nn.Unflatten(1, shape), ChannelsFirst()] if channels_last(shape) else [nn.Unflatten(1, (channels, *sides))]
    (first, kernel, stride), (second, its_kernel, its_stride) = SCREEN if min(sides) >= LEAST_SCREEN else GRID
    after = [((side - kernel) // stride + 1 - its_kernel) // its_stride + 1 for side in sides]

    def make(generator: np.random.Generator) -> nn.Module:
        module = nn.Sequential(
            *unflatten,
            nn.Conv2d(channels, first, kernel, stride=stride), nn.ReLU(),
            nn.Conv2d(first, second, its_kernel, stride=its_stride), nn.ReLU(),
            nn.Flatten(), nn.Linear(second * math.prod(after), outputs),
        )
        for layer in module:
            if parameters := list(layer.parameters()):
                bound = 1 / math.sqrt(parameters[0][0].numel())
                for parameter in parameters:
                    parameter.data = torch.tensor(generator.uniform(-bound, bound, tuple(parameter.shape)), dtype=torch.float32)
        return module

    return make


def pixels_by_channel(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flattened images [B, prod(shape)] -> [C, B, H, W], a view."""
    images = rows.reshape(len(rows), *(shape if len(shape) == 3 else (1, *shape)))
    return np.moveaxis(images, -1 if channels_last(shape) else 1, 0)


def channel_moments(images: Callable[[slice], np.ndarray], count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 [C], of every channel over `count` flattened images, of which `images` gives a slice [B, prod(shape)]."""

    def mean(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sums = sum(of(pixels_by_channel(images(slice(start, start + 256)), shape).astype(np.float64)).sum((1, 2, 3)) for start in range(0, count, 256))
        return sums / (count * math.prod(shape) / len(sums))

    center = mean(lambda pixels: pixels)
    return center, np.sqrt(mean(lambda pixels: (pixels - center[:, None, None, None]) ** 2))


def of_every_entry(of_channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A number for each channel [C] -> for each entry of a flattened image [prod(shape)]."""
    return np.broadcast_to(of_channels if channels_last(shape) else of_channels[:, None, None], shape if len(shape) == 3 else (1, *shape)).reshape(-1)


def on_raw_images(policies: dict[str, Tensor], center: np.ndarray, scale: np.ndarray) -> dict[str, Tensor]:
    """Policies [P, ...] of images normalised channel by channel, (x - c) / s with c, s float64 [P, C], as the same policies of the images as they are.

    The first convolution has no padding, so each of its outputs is a sum over whole patches: W ((x - c) / s) + b = (W / s) x + (b - sum W c / s); in float64.
    """
    weight, bias = (next(name for name, value in policies.items() if value.ndim == dimensions) for dimensions in (5, 2))
    scaled = policies[weight].double() / torch.from_numpy(scale)[:, None, :, None, None]
    moved = policies[bias].double() - (scaled * torch.from_numpy(center)[:, None, :, None, None]).sum((2, 3, 4))
    return policies | {weight: scaled.float(), bias: moved.float()}
