"""Stage `image`: contrastive pretraining of the small pair of `conditioners.image` on pictures and sound of clips.

For corpora and sizes that PE-AV does not serve; everyone else names its weights in `conditioners.image.pretrained`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from audioldm2_pl.conditioners.image import ImageEncoder
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.clap import MAX_LOGIT_SCALE, contrastive_loss
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig

FIRST_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP's


@dataclass
class ImageTrainingConfig(StageConfig):
    """CLIP's recipe (Radford et al. 2021, Table 18) with a small network's learning rate."""

    batches: int = 45_000
    batch_size: int = 96
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.2, warmup_batches=2_000, decay="cosine"
        )
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"contrastive": 1.0}, keys=("contrastive",), ge=0)
    least_crop: float = bounded(0.5, gt=0, le=1)  # share of a picture's area that a random crop keeps; 1 crops none
    colour_jitter: float = bounded(0.0, ge=0, le=0.5)  # most change of brightness, contrast and saturation


class ImagePretraining(Stage):
    """Trains both branches and one temperature; clips that have the same pictures are no negatives of each other."""

    name = "image"
    makes = "image"
    settings = ("conditioners",)
    optional = True
    needs_images = True
    networks = ("image",)
    averaged = ("image",)

    def __init__(self, config: ImageTrainingConfig, image: ImageEncoder, sample_rate: int):
        """`sample_rate` in Hz, of the batches' waveforms."""
        super().__init__(config)
        self.image = image.requires_grad_(True).train()
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOGIT_SCALE))
        self.sample_rate = sample_rate
        pair: Any = image.model
        jitter = config.colour_jitter
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(pair.config.image_size, (config.least_crop, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(jitter, jitter, jitter),
            ]
        )

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        pair = folder.start("image_encoder")
        image = experiment.conditioners.image.build() if pair is None else ImageEncoder(pair)
        return cls(experiment.training.image, image, experiment.audio.sample_rate)

    def augmented(self, image: np.ndarray) -> Tensor:
        """A picture, uint8 (H, W, 3) => in training a random crop, perhaps mirrored, else all of it, (3, H, W)."""
        picture = torch.from_numpy(image).permute(2, 0, 1)
        return self.augment(picture) if self.training else picture

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with torch.no_grad():  # before the forward pass, not after the step: a checkpoint is written between the two
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        audio = self.image.encode_audio(batch["waveform"], self.sample_rate).embedding.squeeze(1)  # (B, D)
        images = self.image.encode_images([self.augmented(image) for image in batch["image"]])
        ids = self.gather(batch["image_id"])  # (ranks * B,)
        pairs = self.gather(audio), self.gather(images.embedding.squeeze(1))  # (ranks * B, D) each
        same = ids[:, None] == ids[None, :]
        return {"contrastive": contrastive_loss(*pairs, self.logit_scale, self.logit_scale, same)}

    def parts(self) -> dict[str, Any]:
        return self.image.parts()
