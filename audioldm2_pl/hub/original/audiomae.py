"""AudioMAE: the authors' names are ours, so only the sizes are to be found."""

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count, renamed
from audioldm2_pl.models.audiomae import AudioMAE, AudioMAEConfig

HEAD_CHANNELS = 64  # of one head of the encoder
DECODER_HEAD_CHANNELS = 32  # of one head of the decoder
NUM_BINS = 128  # of the filter bank; the shapes give only the number of patches of a clip

DECODER = ("decoder_", "mask_token")


def has_decoder(weights: Weights) -> bool:
    """True with a decoder of plain ViT blocks; the published pretrained file has one of Swin blocks."""
    names = [key for key in weights if key.startswith("decoder_blocks.")]
    return "decoder_pred.weight" in weights and bool(names) and not any("logit_scale" in name for name in names)


def audiomae_config(weights: Weights, pooling: int) -> AudioMAEConfig:
    """The sizes, read off the shapes. Raises UserError where the patches are not those of 128 bins."""
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    num_patches = weights["pos_embed"].shape[1] - 1
    if channels != 1 or num_patches % (NUM_BINS // patch):
        raise UserError(
            f"AudioMAE has {num_patches} patches of {patch} in {channels} channels; known are {NUM_BINS} bins"
        )
    sizes = AudioMAEConfig(
        num_frames=num_patches // (NUM_BINS // patch) * patch,
        num_bins=NUM_BINS,
        patch_size=patch,
        embed_dim=width,
        depth=count(weights, r"blocks\.(\d+)\."),
        num_heads=max(1, width // HEAD_CHANNELS),
        pooling=pooling,
    )
    if has_decoder(weights):
        sizes.decoder_dim = weights["decoder_embed.weight"].shape[0]
        sizes.decoder_depth = count(weights, r"decoder_blocks\.(\d+)\.")
        sizes.decoder_heads = max(1, sizes.decoder_dim // DECODER_HEAD_CHANNELS)
    return sizes


def build_audiomae(weights: Weights, pooling: int = 8) -> tuple[AudioMAE, Moves]:
    """AudioMAE; without a plain decoder in the file, it keeps a fresh one, which only pretraining uses."""
    decoder = has_decoder(weights)
    audiomae = AudioMAE(audiomae_config(weights, pooling))
    return audiomae, renamed({k: v for k, v in weights.items() if decoder or not k.startswith(DECODER)}, ())
