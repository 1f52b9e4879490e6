"""The VAE: Encoder and Decoder of the authors' modules/diffusionmodules/model.py => `diffusers.AutoencoderKL`."""

import re

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count
from audioldm2_pl.models.vae import VAEConfig, build_vae

ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_config(weights: Weights, scaling_factor: float) -> VAEConfig:
    """The sizes, read off the shapes. Raises UserError for a VAE that AutoencoderKL cannot be."""
    num_levels = count(weights, r"encoder\.down\.(\d+)\.")
    channels, width = weights["encoder.conv_in.weight"].shape[1], weights["post_quant_conv.weight"].shape
    if channels != 1 or width[0] != width[1]:
        raise UserError(
            f"the VAE reads {channels} channels and has latents of {width[1]} inside {width[0]}; known here is one "
            "channel, and z_channels equal to embed_dim"
        )
    return VAEConfig(
        block_out_channels=[weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(num_levels)],
        layers_per_block=count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=width[1],
        mid_attention="encoder.mid.attn_1.q.weight" in weights,
        scaling_factor=scaling_factor,
    )


def rename(key: str, num_levels: int) -> str | None:
    if re.fullmatch(r"(post_)?quant_conv\.\w+|(en|de)coder\.conv_(in|out)\.\w+", key):
        return key
    if found := re.fullmatch(r"(encoder|decoder)\.norm_out\.(\w+)", key):
        return f"{found[1]}.conv_norm_out.{found[2]}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.block_(\d)\.(.+)", key):
        return f"{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{found[3].replace('nin_', 'conv_')}"
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(\w+)", key):
        return f"{found[1]}.mid_block.attentions.0.{ATTENTION.get(found[2])}.{found[3]}"
    if found := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(\w+)\.(.+)", key):
        # the original numbers the way up from the full resolution, diffusers from the lowest
        level = int(found[2]) if found[1] == "encoder.down" else num_levels - 1 - int(found[2])
        block = f"{found[1]}_blocks.{level}"
        if found[3] == "block":
            return f"{block}.resnets.{found[4].replace('nin_', 'conv_')}"
        if found[3] in ("downsample", "upsample"):
            return f"{block}.{found[3]}rs.0.{found[4]}"
    return None


def flat(key: str, tensor: Tensor) -> Tensor:
    """The 1×1 convolutions of attention are linear layers in diffusers."""
    return tensor.flatten(1) if ".mid.attn_1." in key and tensor.ndim == 4 else tensor


def build_converted_vae(weights: Weights, scaling_factor: float) -> tuple[AutoencoderKL, Moves]:
    config = vae_config(weights, scaling_factor)
    num_levels = len(config.block_out_channels)
    moves = ((key, name, flat(key, weights[key])) for key in weights if (name := rename(key, num_levels)))
    return build_vae(config), moves
