"""Face alignment: five landmarks to the positions that ArcFace and its relatives are trained on."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untrusted.pictures import open_picture

SIDE = 112
REFERENCE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""[5, 2] x and y, in pixels of the 112×112 crop, of eyes, nose and corners of the mouth."""


def similarity(source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """[2, 3], the rotation, scale and shift that bring `source` ([n, 2]) nearest to `target`.

    Least squares (Umeyama 1991), without mirroring. Raises ValueError when the points of `source`
    coincide or are not finite.
    """
    centre, aim = source.mean(axis=0), target.mean(axis=0)
    spread = ((source - centre) ** 2).sum()
    if not np.isfinite(spread) or spread <= 0:
        raise ValueError("the landmarks coincide or are not finite")
    # As complex numbers a similarity is z -> a z + b, and the best a is a ratio of two sums.
    z, w = ((p - m) @ np.array([1, 1j]) for p, m in ((source, centre), (target, aim)))
    factor = (z.conj() @ w) / spread
    if factor == 0:
        raise ValueError("the landmarks have no direction")
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([turn, aim - turn @ centre])


def align(image: Image.Image, landmarks: NDArray[Any]) -> Image.Image:
    """The 112×112 crop in which `landmarks` ([5, 2] pixels: x, y) lie nearest to `REFERENCE`.

    Bilinear; black outside of the image. Coordinates count from the centre of the first pixel.
    """
    forward = similarity(landmarks, REFERENCE)
    inverse = np.linalg.inv(forward[:, :2])
    shift = -inverse @ forward[:, 2]
    # Pillow's coordinates count from the corner of the first pixel.
    shift += 0.5 - inverse @ np.array([0.5, 0.5])
    matrix = np.column_stack([inverse, shift]).ravel().tolist()
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return image.convert("RGB").transform((SIDE, SIDE), affine, matrix, bilinear)


def aligned_png(image: bytes, landmarks: NDArray[Any]) -> bytes:
    """`align` for encoded bytes. Raises ValueError when they cannot be decoded."""
    return png(align(open_picture(image), landmarks))


def png(image: Image.Image) -> bytes:
    """`image` as PNG, fast rather than small."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
