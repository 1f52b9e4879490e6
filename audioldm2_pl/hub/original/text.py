"""Text encoders: FLAN-T5, and for speech the authors' `PhonemeEncoder` => the text encoder of `VitsModel`."""

from transformers import T5Config, T5EncoderModel, VitsModel

from audioldm2_pl.conditioners.phonemes import PhonemeConfig, build_vits
from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count, renamed

RENAMED = (
    (r"^text_encoder\.emb\.", "text_encoder.embed_tokens."),
    (r"\.attn_layers\.(\d+)\.", r".layers.\1.attention."),
    (r"\.norm_layers_1\.(\d+)\.", r".layers.\1.layer_norm."),
    (r"\.ffn_layers\.(\d+)\.", r".layers.\1.feed_forward."),
    (r"\.norm_layers_2\.(\d+)\.", r".layers.\1.final_layer_norm."),
    (r"\.conv_([qkv])\.", r".\1_proj."),
    (r"\.conv_o\.", ".out_proj."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


def build_t5(weights: Weights) -> tuple[T5EncoderModel, Moves]:
    """T5's encoder. The names are transformers' own already."""
    vocabulary, width = weights["shared.weight"].shape
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = weights[f"{attention}.relative_attention_bias.weight"].shape
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in weights
    feed_forward = weights[f"encoder.block.0.layer.1.DenseReluDense.wi{'_0' if gated else ''}.weight"]
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=weights[f"{attention}.q.weight"].shape[0] // heads,
        d_ff=feed_forward.shape[0],
        num_layers=count(weights, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    return T5EncoderModel(config), renamed(weights, ())


def build_phonemes(weights: Weights) -> tuple[VitsModel, Moves]:
    """VITS of which only the text encoder has a use, and is in the file.

    The learned positions stay behind: in diffusers they belong to the projection.
    """
    convolution = weights["text_encoder.encoder.ffn_layers.0.conv_1.weight"].shape
    config = PhonemeConfig(
        hidden_size=convolution[1],
        num_layers=count(weights, r"text_encoder\.encoder\.attn_layers\.(\d+)\."),
        ffn_dim=convolution[0],
        kernel_size=convolution[2],
    )
    return build_vits(config), renamed(weights, RENAMED)


def is_used_phoneme(name: str) -> bool:
    """Whether a tensor of VitsModel has a part in what the phoneme encoder gives."""
    return name.startswith("text_encoder.") and ".project." not in name
