"""The VAE: Encoder and Decoder of the authors' modules/diffusionmodules/model.py => `diffusers.AutoencoderKL`."""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count, renamed
from audioldm2_pl.models.vae import VAEConfig, build_vae

RENAMED = (
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.nin_", ".conv_"),
)


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


def build_converted_vae(weights: Weights, scaling_factor: float) -> tuple[AutoencoderKL, Moves]:
    config = vae_config(weights, scaling_factor)
    top = len(config.block_out_channels) - 1
    # the original numbers the way up from the full resolution, diffusers from the lowest
    from_lowest = (r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up.{top - int(found[1])}.")
    return build_vae(config), renamed(weights, (from_lowest, *RENAMED))
