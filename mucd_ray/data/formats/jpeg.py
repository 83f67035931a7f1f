"""Images stored as JPEG files, as Minari does by default."""

import io

import numpy as np
from PIL import Image


def decoded(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """A JPEG file as uint8 [*shape], which is [height, width] or [height, width, bands].

    Raises:
        ValueError: its header declares another shape, so that nothing of it is decoded; or whatever Pillow raises on damage.
    """
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        bands = len(image.getbands())
        if image.size != (shape[1], shape[0]) or bands != (shape[2] if len(shape) == 3 else 1):
            raise ValueError(f"an image of {image.size[1]} x {image.size[0]} x {bands}, the space declares {shape}")
        return np.asarray(image).reshape(shape)
