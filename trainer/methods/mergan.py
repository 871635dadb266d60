"""Memory replay GANs (Wu et al. 2018, "Memory Replay GANs: learning to generate images from new
categories without forgetting"; MeRGAN): images of old classes are drawn, not stored.

One conditional WGAN with gradient penalty draws images of all classes so far; replay alignment
keeps those of old ones (their Sec. 4.2). As a class-incremental method (generative feature replay,
Tables 1 and 2) what it draws joins new images in training, as images of old classes. Nothing is
distilled.

The critic is told the class by projection (Miyato and Koyama 2018). MeRGAN's released code has an
auxiliary classifier in its place, whose images are drawn towards what a classifier finds typical.
"""

from typing import Literal

from pydantic import Field

from trainer.entrance import IMAGE
from trainer.methods.recipe import BatchNorm, MethodSettings, Recipe, Start
from trainer.methods.replay import ReplayInputs
from trainer.methods.terms import Classify
from trainer.replay.wgan_folder import ConvWgans
from trainer.replay.wgan_settings import ConvWganSettings


class MemoryReplayGAN(MethodSettings):
    """MeRGAN: images of old classes are drawn beside new ones; no image is stored."""

    kind: Literal["mergan"] = "mergan"
    gan: ConvWganSettings = ConvWganSettings()
    """What draws images, at the size that training has."""
    replay: float = Field(default=1.0, ge=0)
    """Weight of the drawn images' cross-entropy over all rows."""
    images: int | None = Field(default=None, ge=1)
    """Images drawn in an update; none: as many as the batch has."""
    batch_norm: BatchNorm = "trained"
    """Of batch normalisation, from the second step on. trained: by batches of both, new images and
    drawn ones; held: by the running statistics of the first step's model."""

    def recipe(self) -> Recipe:
        replay = ReplayInputs(self.replay, ConvWgans(self.gan), IMAGE, self.images)
        start = Start(batch_norm=self.batch_norm)
        return Recipe(start=start, terms=(Classify(over="all"), replay))
