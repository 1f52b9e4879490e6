"""The VAE that compresses log-mels into the latents in which diffusion runs (paper §III-C).

The network is `diffusers.AutoencoderKL`: a folder of ours opens in stock diffusers, and published ones open here.

Letters: B batch, F frames, M mel bins, C latent channels, r downsampling factor.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields

INITIAL_LOG_MEL = -6.0  # of every bin from a fresh decoder


@dataclass
class VAEConfig:
    """Convolutional VAE; every level but the last halves time and frequency. Defaults: the published model."""

    block_out_channels: list[int] = bounded(lambda: [128, 256, 512], ge=1, le=65_536, min_length=1)  # by level
    layers_per_block: int = bounded(2, ge=1, le=100)  # residual blocks a level; the decoder has one more
    latent_channels: int = bounded(8, ge=1, le=65_536)  # C
    norm_num_groups: int = bounded(32, ge=1)  # of every group norm; divides all widths
    mid_attention: bool = True  # self-attention between encoder and decoder, over all latent positions
    sample_size: int = bounded(1024, ge=1, le=1_000_000)  # frames of a full clip, for diffusers' tools
    scaling_factor: float = bounded(0.4110932946205139, gt=0)  # 1 / std of the latents; training measures its own

    def __post_init__(self) -> None:
        check_fields(self, "vae.")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise UserError(
                f"vae.block_out_channels={self.block_out_channels} has a width that vae.norm_num_groups="
                f"{self.norm_num_groups} does not divide; change one of them"
            )

    @property
    def downsampling(self) -> int:
        """Frames (and mel bins) to one latent position."""
        return 2 ** (len(self.block_out_channels) - 1)


def build_vae(config: VAEConfig) -> AutoencoderKL:
    """A freshly initialised VAE."""
    widths = list(config.block_out_channels)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * len(widths),  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * len(widths),  # type: ignore[arg-type]
        block_out_channels=tuple(widths),  # type: ignore[arg-type]
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_attention,
        sample_size=config.sample_size,
        scaling_factor=config.scaling_factor,
    )
    # Log-mels lie between -11.5 and about 3; a decoder that starts at 0 spends hundreds of steps on the offset.
    nn.init.constant_(vae.decoder.conv_out.bias, INITIAL_LOG_MEL)  # type: ignore[arg-type]
    return vae


def encode(vae: AutoencoderKL, log_mel: Tensor) -> DiagonalGaussianDistribution:
    """log-mel (B, 1, F, M) => posterior over latents (B, C, F / r, M / r), not yet scaled; float32 under autocast too.

    Raises UserError where r does not divide F or M.
    """
    downsampling = 2 ** (len(vae.config["block_out_channels"]) - 1)
    if log_mel.shape[2] % downsampling or log_mel.shape[3] % downsampling:
        raise UserError(
            f"a log-mel of {log_mel.shape[2]} frames × {log_mel.shape[3]} bins does not divide by the VAE's "
            f"downsampling of {downsampling}; change the length of the clip or crop"
        )
    posterior = vae.encode(log_mel, return_dict=False)[0]
    return DiagonalGaussianDistribution(posterior.parameters.float())


def latent_of(vae: AutoencoderKL, log_mel: Tensor, sample: bool = True) -> Tensor:
    """log-mel (B, 1, F, M) => scaled latent (B, C, F / r, M / r), of unit std over a corpus.

    A draw from the posterior (torch's global generator), or its mode where `sample` is False.
    """
    posterior = encode(vae, log_mel)
    return (posterior.sample() if sample else posterior.mode()) * vae.config["scaling_factor"]


def log_mel_of(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Scaled latent (B, C, F / r, M / r) => log-mel (B, 1, F, M)."""
    return vae.decode(latent / vae.config["scaling_factor"], return_dict=False)[0].float()


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, log_mels: Iterable[Tensor]) -> float:
    """1 / std of posterior samples over batches of log-mels (B, 1, F, M); written into `vae.config` too.

    The expectation over all samples, which needs no random draw. The authors' code takes one sample of the first
    training batch; several batches make the number steadier. Raises UserError where there is no batch or the latents
    are constant.
    """
    count, total, squares = 0, 0.0, 0.0
    for log_mel in log_mels:
        posterior = encode(vae, log_mel)
        mean, std = posterior.mean.double(), posterior.std.double()  # (B, C, F / r, M / r)
        count += mean.numel()
        total += mean.sum().item()
        squares += (mean.square() + std.square()).sum().item()
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not variance > 0.0:
        raise UserError("the VAE's scaling factor cannot be measured: no batch, or constant latents; train longer")
    scaling_factor = variance**-0.5
    vae.register_to_config(scaling_factor=scaling_factor)
    return scaling_factor
