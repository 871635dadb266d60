"""A first configuration for a dataset: sized to what it holds, with a word on each key."""

from dataclasses import dataclass

from untrusted.errors import InputError

_FOLDS = 4
"""Identities that the fewest folds of verification need."""


@dataclass(frozen=True)
class Facts:
    """What a configuration is sized by."""

    dataset: str
    """Its folder or URL."""
    origin: str
    """What it was made of, in words."""
    images: int
    identities: int
    testable: int
    """Identities with images from two cameras or, where no camera is known, with two images."""
    cameras: int
    """0: unknown."""
    height: int
    """Of an image in the middle, pixels."""
    width: int
    gpus: int


def first_configuration(facts: Facts, name: str) -> str:
    """The text of NAME.yaml. Raises InputError where there are too few identities."""
    tested = how_many_tested(facts)
    learned = facts.identities - tested
    images = round(facts.images * learned / facts.identities)
    height, width = training_size(facts)
    batch = min(256 if facts.gpus else 64, max(8, 1 << (images // 4).bit_length() - 1))
    most = 20_000 if facts.gpus else 3_000
    iterations = min(most, max(200, round(40 * images / batch, -2)))
    milestones = f"[{iterations * 6 // 10}, {iterations * 85 // 100}]"
    large = images > 100_000
    network = (
        f"{{architecture: {'resnet50' if large else 'resnet18'}, dimension: 256"
        + (", stem: small}" if max(height, width) <= 64 else "}")
        if facts.gpus
        else "{architecture: small, dimension: 128}"
    )
    cameras = f"{facts.cameras:,} cameras" if facts.cameras else "cameras unknown"
    times = f"{iterations * batch / images:,.0f}"
    pixels, own = f"{height}x{width}", f"{facts.height}x{facts.width}"
    seen, later = min(500, learned // 4), f"continues=runs/{name}"
    cluster = f"{{workers: {facts.gpus}, gpu: true}}" if facts.gpus else "{workers: 1}"
    return f"""\
# {facts.images:,} images of {facts.identities:,} identities, {cameras}.
# Written by `perennial init` for {facts.origin}. `perennial config --all` explains every key.
dataset: {facts.dataset}
benchmark:
  steps: 1                # learning steps; later identities come with {later}
  test_identities: {tested:<6} # kept out of training, to measure on; null: a fifth
  seen_identities: {seen:<6} # of those learned: an image each held out, to see forgetting
data:
  image_size: {pixels:<11} # HxW that images are scaled to; here they are about {own}
  augmentation: {{flip: false}}  # true where a mirror image shows the same identity
embedder: {network}  # the network, and d, the length of its vectors
training:
  iterations: {iterations:<11} # updates a learning step: {times} times each image
  batch: {batch}
  learning_rate: 0.05
  milestones: {milestones}  # where the rate is divided by 10
  log_every: 10
methods:                  # compared with each other; alike until the first later identities come
  finetune: {{}}            # goes on with the new images, and nothing else
  fkd: {{weight: 1.0, neighbours: 50, relaxation: 0.01}}  # holds on to what the last model knew
cluster: {cluster}
"""


def how_many_tested(facts: Facts) -> int:
    """How many identities are kept for tests: a fifth, at least 4, at most 1,500.

    Raises InputError where that leaves too few.
    """
    needs = "images from two cameras" if facts.cameras else "two images"
    if facts.testable < _FOLDS or facts.identities < 2 * _FOLDS:
        raise InputError(
            f"{facts.dataset} has {facts.identities:,} identities, {facts.testable:,} of them with "
            f"{needs}: a first run needs {2 * _FOLDS} identities, of whom {_FOLDS} to test on have "
            f"{needs}"
        )
    return min(1500, facts.testable, max(_FOLDS, facts.identities // 5))


def training_size(facts: Facts) -> tuple[int, int]:
    """Height and width to train on: as square or narrow as the images, and no larger than these.

    A longer side of at most 64 pixels on a CPU, 224 on a GPU; multiples of 16.
    """
    longest = min(224 if facts.gpus else 64, max(facts.height, facts.width))
    long = max(16, longest // 16 * 16)
    shape = facts.height / facts.width
    if 0.75 <= shape <= 4 / 3:
        return long, long
    short = max(16, long // 2 // 16 * 16)
    return (long, short) if shape > 1 else (short, long)
