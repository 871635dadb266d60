"""Settings of exemplars that are learned."""

from typing import Annotated, Literal

from pydantic import Field

from data_shards.settings import UNDECIDING, Settings


class MnemonicsSettings(Settings):
    """How exemplars' pixels are optimised (mnemonics, Liu et al. 2020, Eqs. 8 to 10).

    Pixels count from -1 to 1 here, as the network sees them: a level of 8 bits is 0.0078.
    """

    epochs: int = Field(default=50, ge=1)
    """Passes over the images that the outer loss is of: the step's own, or the other half of old
    exemplars."""
    learning_rate: float = Field(default=0.01, gt=0)
    """beta_1 and beta_2, of the pixels, at the start; by `adam`, how far a pixel moves in an
    update, at most."""
    halve_every: int = Field(default=10, ge=1)
    """Epochs after which the learning rate is halved, again and again."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of the pixels. sgd: the paper's Eq. 9 as it is written. Its gradient of a pixel is small
    (alpha_2 times a second derivative, over the number of images), so that at the paper's rate
    pixels of a well-trained model move by less than a level of 8 bits."""
    inner_steps: int = Field(default=5, ge=1)
    """Steps of the temporary model on exemplars, through which the gradient goes."""
    inner_rate: float = Field(default=0.01, gt=0)
    """alpha_2, the learning rate of these steps."""
    inner_batch: int = Field(default=128, ge=2)
    """Exemplars that each of these steps is on."""
    batch: int = Field(default=128, ge=2)
    """Images that the outer loss of an update is of."""
    classes: int = Field(default=10, ge=1)
    """Classes whose exemplars are optimised together, in the order of their rows; where a step has
    more, half of each batch are other classes' images, whose exemplars stay meanwhile as they were.
    Groups are what workers share out."""
    images: int = Field(default=500, ge=1)
    """Of each class at most so many images, drawn at random, are what the outer loss is of."""
    recompute: Annotated[bool, UNDECIDING] = False
    """The activations of one inner step at a time are kept and the others computed once more: less
    memory, a third more time."""
