"""Face verification sets (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin`` and the like).

A pickle of (2P encoded images, P truth values): pair j is images 2j and 2j + 1. It is read by an
interpreter that cannot run code (`data_shards.sources.pickles`).

The files name no identities, and some people occur in several pairs. The images of a pair that
shows one person share the identity ``pair-00042``; those of other pairs have one each,
``pair-00043-left`` and ``-right``. Such identities serve to compare within pairs only, so the role
is "query": the images are not trained on.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data_shards.settings import InputError, Settings
from data_shards.sources import UNKNOWN_CAMERA, Refusal, SourceImage, named
from data_shards.sources.pickles import Array, Refused, read_pickle

FOLDS = 10
_REPEATED = 64
"""Times that an image may be used on average: a photograph can be in several pairs."""


class VerificationBinSettings(Settings):
    """A verification .bin file."""

    path: Path
    """The .bin file."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: lfw/pair-7."""


class Pairs(NamedTuple):
    """The content of a file."""

    images: list[bytes | None]
    """[2P] encoded images; None for an entry that is no image."""
    same: list[bool]
    """[P] whether a pair shows one person."""


def _list(value: object) -> list[object] | None:
    """A list, tuple or one-dimensional array as a list."""
    if isinstance(value, Array) and len(value.shape) == 1:
        return [bool(v) for v in value.content] if value.code == "b1" else list(value.content)
    return list(value) if isinstance(value, list | tuple) else None


def read_pairs(path: Path) -> Pairs:
    """Reads a file. Raises InputError when it is damaged, of another kind, or would run code."""
    try:
        value = read_pickle(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Refused as error:
        raise InputError(
            f"{path} is refused: {error}. Get the file from its publisher, or make folders of it"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is no whole verification file: {error}; restore it") from error
    if isinstance(value, dict):
        names = {_text(key): part for key, part in value.items()}
        value = [names.get("bins"), names.get("issame_list")]
    parts = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
    held, same = map(_list, parts)
    if held is None or same is None or not all(isinstance(s, int) and s in (0, 1) for s in same):
        raise InputError(f"{path} does not hold (images, truth values): is it a verification .bin?")
    if len(held) != 2 * len(same):
        raise InputError(
            f"{path} holds {len(held)} images for {len(same)} pairs, not two for each: restore it"
        )
    images = [_encoded(image) for image in held]
    if sum(len(image or b"") for image in images) > _REPEATED * path.stat().st_size:
        raise InputError(
            f"{path} is refused: it repeats a few images more than {_REPEATED} times; make folders "
            "of its images"
        )
    return Pairs(images, [bool(s) for s in same])


def _text(key: object) -> object:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _encoded(image: object) -> bytes | None:
    """An image's bytes, also from an array of them, as cv2.imencode's (N, 1); else None."""
    if isinstance(image, Array) and image.code == "u1" and sum(s != 1 for s in image.shape) <= 1:
        image = image.content
    return image if isinstance(image, bytes) else None


def count_verification_bin(settings: VerificationBinSettings) -> int:
    """The number of images, 2P."""
    return len(read_pairs(settings.path).images)


def verification_bin_tables(settings: VerificationBinSettings) -> dict[str, pa.Table]:
    """``pairs``: left_key, right_key, same, fold; ten folds in the file's order."""
    same = read_pairs(settings.path).same
    keys = [f"{number:06d}" for number in range(2 * len(same))]
    folds = [np.full(len(part), fold) for fold, part in enumerate(np.array_split(same, FOLDS))]
    columns = {
        "left_key": pa.array(keys[::2], pa.string()),
        "right_key": pa.array(keys[1::2], pa.string()),
        "same": pa.array(same, pa.bool_()),
        "fold": pa.array(np.concatenate(folds), pa.int8()),
    }
    return {"pairs": pa.table(columns)}


def read_verification_bin(
    settings: VerificationBinSettings, start: int = 0
) -> Iterator[SourceImage | Refusal]:
    """The images in the file's order, from image `start` on. Memory: the file's size, twice."""
    images, same = read_pairs(settings.path)
    for number in range(start, len(images)):
        pair, side = divmod(number, 2)
        identity = f"pair-{pair:05d}" + ("" if same[pair] else ("-left", "-right")[side])
        identity, key, image = named(settings.name, identity), f"{number:06d}", images[number]
        if image is None:
            yield Refusal(key, identity, "not an image", "it is no encoded image")
        else:
            yield SourceImage(
                image=image, identity=identity, camera=UNKNOWN_CAMERA, key=key, role="query"
            )
