"""Stage `vae`: the autoencoder of log-mels (paper Sec. III-C; loss as the authors' training code has it).

The authors sum the L1 distance over a clip's 1024 × 64 bins, average the KL over the latent's elements and weigh it by
1000. Here both are means over elements, so that no weight depends on the clip's length; dividing their sum by 65,536
gives a KL weight of 1000 / 65,536. Adam does not see a common factor, and the adaptive adversarial weight follows the
reconstruction's gradient, so the balance of all terms is theirs. Their perceptual term (LPIPS) compares pictures
through an ImageNet VGG, which would have to be downloaded; it is left out.

Letters: B batch, T samples, F frames, M mel bins.
"""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from audioldm2_pl.audio import LogMel, griffin_lim
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.discriminators import (
    SMALLEST_PATCHES,
    PatchGAN,
    PatchGANConfig,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from audioldm2_pl.models.vae import build_vae, encode, latent_of, log_mel_of, measure_scaling_factor
from audioldm2_pl.models.vocoder import vocode
from audioldm2_pl.seeds import noise_like
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.training.lengths import frames_read
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig


@dataclass
class VAETrainingConfig(StageConfig):
    """The authors' recipe: batches of 4 whole clips, Adam at 8e-6."""

    batches: int = 400_000
    batch_size: int = 4
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="adam", learning_rate=8e-6, betas=(0.5, 0.9))
    )
    loss_weights: dict[str, float | None] = bounded(
        lambda: {"reconstruction": 1.0, "kl": 1000 / 65_536, "adversarial": 0.5},
        keys=("reconstruction", "kl", "adversarial"),
        ge=0,
    )
    discriminator: PatchGANConfig = field(default_factory=PatchGANConfig)  # sees log-mels
    discriminator_start: int = bounded(25_000, ge=0)  # batches before the discriminator joins
    adaptive_weight: bool = True  # scale the adversarial term to the reconstruction's gradient at the last layer
    scaling_batches: int = bounded(16, ge=1)  # over which the latents' std is measured at the end


class VAETraining(Stage):
    """Trains the VAE against a PatchGAN; at the end measures the latents' scaling factor."""

    name = "vae"
    makes = "vae"
    settings = ("vae",)
    networks = ("vae", "discriminator")
    compiles = ("vae.encoder", "vae.decoder", "discriminator")
    averaged = ("vae",)

    def __init__(self, config: VAETrainingConfig, vae: AutoencoderKL, log_mel: LogMel):
        super().__init__(config)
        self.automatic_optimization = False
        self.vae: Any = vae
        self.vae.train().requires_grad_(True)
        self.discriminator = PatchGAN(config.discriminator)
        self.log_mel = log_mel
        self.adversarial = False  # whether the discriminator has joined

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        vae = folder.start("vae") or build_vae(experiment.vae)
        return cls(experiment.training.vae, vae, LogMel(experiment.audio))

    @classmethod
    def check(cls, experiment: Any) -> None:
        super().check(experiment)
        num_layers = experiment.training.vae.discriminator.num_layers
        smallest = min(frames_read(cls, experiment), experiment.audio.num_mel_bins)
        if smallest >> num_layers < SMALLEST_PATCHES:
            raise UserError(
                f"training.vae.discriminator.num_layers={num_layers} halve {smallest} frames or mel bins to fewer than "
                f"{SMALLEST_PATCHES}; take fewer layers"
            )

    def optimized(self) -> dict[str, nn.Module]:
        return {"generator": self.vae, "discriminator": self.discriminator}

    def reconstruct(self, waveform: Tensor) -> tuple[Tensor, Tensor, DiagonalGaussianDistribution]:
        """waveform (B, T) => log-mel, its reconstruction from a posterior sample (both (B, 1, F, M)), posterior."""
        log_mel = self.log_mel(waveform)
        posterior = encode(self.vae, log_mel)
        latent = posterior.mean + posterior.std * noise_like(posterior.mean, self.shared.on(log_mel.device))
        reconstruction = self.vae.decode(latent, return_dict=False)[0].float()  # type: ignore[arg-type]
        return log_mel, reconstruction, posterior

    def generator_terms(
        self, log_mel: Tensor, reconstruction: Tensor, posterior: DiagonalGaussianDistribution
    ) -> dict[str, Tensor]:
        terms = {
            "reconstruction": F.l1_loss(reconstruction, log_mel),
            "kl": posterior.kl().mean() / posterior.mean[0].numel(),
        }
        if self.adversarial:
            terms["adversarial"] = hinge_generator_loss(self.discriminator(reconstruction)[0])
        return terms

    def discriminator_loss(self, log_mel: Tensor, reconstruction: Tensor) -> Tensor:
        real, fake = self.discriminator(log_mel)[0], self.discriminator(reconstruction.detach())[0]
        return hinge_discriminator_loss(real, fake)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        log_mel, reconstruction, posterior = self.reconstruct(batch["waveform"])  # (B, 1, F, M)
        terms = self.generator_terms(log_mel, reconstruction, posterior)
        if self.adversarial:
            terms["discriminator"] = self.discriminator_loss(log_mel, reconstruction)
        return terms

    def adversarial_scale(self, terms: dict[str, Tensor]) -> Tensor:
        """Ratio of the reconstruction's gradient to the adversarial one's at the decoder's last layer, a scalar.

        Esser et al. 2021 (arXiv:2012.09841), Eq. 7.
        """
        last_layer = self.vae.decoder.conv_out.weight
        reconstruction, adversarial = (
            torch.autograd.grad(terms[name], last_layer, retain_graph=True)[0].norm()
            for name in ("reconstruction", "adversarial")
        )
        return (reconstruction / (adversarial + 1e-4)).clamp(max=1e4).detach()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[misc]
        self.adversarial = batch_idx >= self.config.discriminator_start
        log_mel, reconstruction, posterior = self.reconstruct(batch["waveform"])
        extra = {}
        if self.adversarial:
            extra["discriminator"] = self.discriminator_loss(log_mel, reconstruction)
            self.update(discriminator_optimizer, extra["discriminator"], batch_idx)
        self.discriminator.requires_grad_(False)  # the generator's step needs no gradient of its weights
        terms = self.generator_terms(log_mel, reconstruction, posterior)
        weighted = dict(terms)
        if self.adversarial and self.config.adaptive_weight:
            weighted["adversarial"] = terms["adversarial"] * self.adversarial_scale(terms)
        self.update(generator_optimizer, self.total(weighted), batch_idx)
        self.discriminator.requires_grad_(True)
        self.log_terms(terms | extra, len(batch["key"]))

    def finish(self, data: AudioShards) -> None:
        """Measures 1 / std of the latents on the first training batches and notes it in the VAE's config."""
        batches = islice(data.first_clips(), self.config.scaling_batches * data.world_size)
        measure_scaling_factor(self.vae, (self.log_mel(b["waveform"].to(self.device)) for b in batches))

    def parts(self) -> dict[str, Any]:
        return {"vae": self.vae}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        return reconstruct_waveform(folder, batch["waveform"], self.log_mel)

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        num_frames = experiment.audio.num_frames_of(self.config.crop_seconds)
        return self.vae, torch.empty(self.config.batch_size, 1, num_frames, experiment.audio.num_mel_bins)


def reconstruct_waveform(folder: ModelFolder, waveform: Tensor, log_mel: LogMel) -> Tensor:
    """waveform (B, T) => itself through VAE and vocoder; until there is a vocoder, Griffin and Lim find the phases."""
    vae = folder.load("vae").to(waveform.device).eval()
    reconstruction = log_mel_of(vae, latent_of(vae, log_mel(waveform), sample=False))  # (B, 1, F, M)
    if not folder.has("vocoder"):
        return griffin_lim(reconstruction, log_mel.config)
    return vocode(folder.load("vocoder").to(waveform.device).eval(), reconstruction)
