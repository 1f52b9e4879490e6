"""Stage `vocoder`: log-mel to waveform, by HiFi-GAN (Kong et al. 2020, arXiv:2010.05646, Sec. 2.4 and 3) or iSTFT.

Letters: B batch, T samples, F frames, M mel bins.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audioldm2_pl.audio import LogMel
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.discriminators import (
    DiscriminatorOutput,
    MultiPeriodConfig,
    MultiPeriodDiscriminator,
    MultiResolutionConfig,
    MultiResolutionDiscriminator,
    MultiScaleConfig,
    MultiScaleDiscriminator,
    feature_matching_loss,
    least_squares_discriminator_loss,
    least_squares_generator_loss,
    stft_magnitude,
)
from audioldm2_pl.models.vocoder import (
    build_vocoder,
    check_hop_length,
    finish_training,
    note_front_end,
    prepare_for_training,
    vocode,
)
from audioldm2_pl.training.lengths import frames_read
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig

DiscriminatorName = Literal["period", "scale", "resolution"]


@dataclass
class VocoderTrainingConfig(StageConfig):
    """HiFi-GAN's recipe; its decay of 0.999 an epoch is a cosine here, where data has no epochs."""

    batches: int = 1_000_000
    batch_size: int = 16
    crop_seconds: float | None = 0.512  # 8,192 samples
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw", learning_rate=2e-4, betas=(0.8, 0.99), weight_decay=0.01, decay="cosine"
        )
    )
    loss_weights: dict[str, float | None] = bounded(
        lambda: {"mel": 45.0, "adversarial": 1.0, "feature_matching": 2.0},
        keys=("mel", "loud", "stft", "adversarial", "feature_matching"),
        ge=0,
    )  # beside them: `loud`, the mel term weighted by energy, and `stft`; with them a small vocoder learns sooner
    # Vocos has period and resolution
    discriminators: list[DiscriminatorName] = bounded(lambda: ["period", "scale"], min_length=1)
    period_discriminator: MultiPeriodConfig = field(default_factory=MultiPeriodConfig)
    scale_discriminator: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    resolution_discriminator: MultiResolutionConfig = field(default_factory=MultiResolutionConfig)
    discriminator_start: int = bounded(0, ge=0)  # batches before the discriminators join; until then they cost nothing
    # Windows of the stft term, in samples. Those shorter than a frame keep noise from buzzing at the frame rate.
    stft_sizes: list[int] = bounded(lambda: [64, 128, 256, 512, 1024], ge=16, le=65_536, min_length=1)


def stft_loss(generated: Tensor, real: Tensor, sizes: list[int]) -> Tensor:
    """Multi-resolution STFT distance of waveforms (B, T): log-magnitude L1 plus spectral convergence.

    Yamamoto et al. 2020 (arXiv:1910.11480), Eq. 4-6, averaged over windows of `sizes` samples, each with a hop of a
    quarter.
    """
    losses = []
    for size in sizes:
        a, b = stft_magnitude(generated, size), stft_magnitude(real, size)  # (B, size / 2 + 1, frames)
        losses.append(F.l1_loss(a.log(), b.log()) + (a - b).norm() / (b.norm() + 1e-6))
    return torch.stack(losses).mean()


def build_discriminator(name: DiscriminatorName, config: VocoderTrainingConfig) -> nn.Module:
    if name == "period":
        return MultiPeriodDiscriminator(config.period_discriminator)
    if name == "scale":
        return MultiScaleDiscriminator(config.scale_discriminator)
    return MultiResolutionDiscriminator(config.resolution_discriminator)


class VocoderTraining(Stage):
    """Trains the vocoder against discriminators of the waveform."""

    name = "vocoder"
    makes = "vocoder"
    settings = ("vocoder",)
    networks = ("vocoder", "discriminators")
    compiles = ("vocoder",)
    averaged = ("vocoder",)

    def __init__(self, config: VocoderTrainingConfig, vocoder: Any, log_mel: LogMel):
        super().__init__(config)
        self.automatic_optimization = False
        check_hop_length(vocoder, log_mel.config.hop_length)
        self.vocoder = prepare_for_training(vocoder.train().requires_grad_(True))
        self.discriminators = nn.ModuleList(build_discriminator(name, config) for name in config.discriminators)
        self.log_mel = log_mel
        self.adversarial = False  # whether the discriminators have joined

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        vocoder = folder.start("vocoder") or build_vocoder(experiment.vocoder, experiment.audio)
        return cls(experiment.training.vocoder, vocoder, LogMel(experiment.audio))

    @classmethod
    def check(cls, experiment: Any) -> None:
        super().check(experiment)
        config, key = experiment.training.vocoder, "training.vocoder"
        num_samples = frames_read(cls, experiment) * experiment.audio.hop_length
        if config.loss_weights.get("stft") and max(config.stft_sizes) // 2 >= num_samples:
            raise UserError(f"{key}.stft_sizes={config.stft_sizes}: too long for crops of {num_samples} samples")
        if "period" in config.discriminators and max(config.period_discriminator.periods) > num_samples:
            raise UserError(f"{key}.period_discriminator.periods: longer than crops of {num_samples} samples")
        if "resolution" in config.discriminators and max(config.resolution_discriminator.num_ffts) // 2 >= num_samples:
            raise UserError(f"{key}.resolution_discriminator.num_ffts: too long for crops of {num_samples} samples")

    def optimized(self) -> dict[str, nn.Module]:
        return {"generator": self.vocoder, "discriminator": self.discriminators}

    def generate(self, waveform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """waveform (B, T) => itself cut to whole frames, its log-mel (B, 1, F, M), the waveform generated from it."""
        log_mel = self.log_mel(waveform)
        waveform = waveform[:, : log_mel.shape[2] * self.log_mel.config.hop_length]
        return waveform, log_mel, vocode(self.vocoder, log_mel)

    def discriminate(self, waveform: Tensor) -> DiscriminatorOutput:
        """Waveform (B, T) => (logits, features) of all sub-discriminators."""
        outputs = [network(waveform) for network in self.discriminators]
        return [x for logits, _ in outputs for x in logits], [x for _, features in outputs for x in features]

    def generator_terms(self, waveform: Tensor, log_mel: Tensor, generated: Tensor) -> dict[str, Tensor]:
        difference = (self.log_mel(generated) - log_mel).abs()  # (B, 1, F, M)
        terms = {"mel": difference.mean(), "loud": (difference * log_mel.exp()).mean() / log_mel.exp().mean()}
        if self.config.loss_weights.get("stft"):
            terms["stft"] = stft_loss(generated, waveform, self.config.stft_sizes)
        if self.adversarial:
            with torch.no_grad():
                _, real_features = self.discriminate(waveform)
            logits, features = self.discriminate(generated)
            terms["adversarial"] = least_squares_generator_loss(logits)
            terms["feature_matching"] = feature_matching_loss(real_features, features)
        return terms

    def discriminator_loss(self, waveform: Tensor, generated: Tensor) -> Tensor:
        real, fake = self.discriminate(waveform)[0], self.discriminate(generated.detach())[0]
        return least_squares_discriminator_loss(real, fake)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        waveform, log_mel, generated = self.generate(batch["waveform"])  # (B, T), (B, 1, F, M), (B, T)
        terms = self.generator_terms(waveform, log_mel, generated)
        if self.adversarial:
            terms["discriminator"] = self.discriminator_loss(waveform, generated)
        return terms

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[misc]
        self.adversarial = batch_idx >= self.config.discriminator_start
        waveform, log_mel, generated = self.generate(batch["waveform"])
        extra = {}
        if self.adversarial:
            extra["discriminator"] = self.discriminator_loss(waveform, generated)
            self.update(discriminator_optimizer, extra["discriminator"], batch_idx)
        self.discriminators.requires_grad_(False)  # the generator's step needs no gradient of their weights
        terms = self.generator_terms(waveform, log_mel, generated)
        self.update(generator_optimizer, self.total(terms), batch_idx)
        self.discriminators.requires_grad_(True)
        self.log_terms(terms | extra, len(batch["key"]))

    def parts(self) -> dict[str, Any]:
        return {"vocoder": note_front_end(finish_training(self.vocoder), self.log_mel.config)}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        """Clips (B, T) through log-mel and vocoder and back."""
        vocoder = folder.load("vocoder").to(self.device).eval()
        return vocode(vocoder, self.log_mel(batch["waveform"]))

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        num_frames = experiment.audio.num_frames_of(self.config.crop_seconds)
        return self.vocoder, torch.empty(self.config.batch_size, num_frames, experiment.audio.num_mel_bins)
