"""CLAP: LAION's model of RoBERTa and HTS-AT => `transformers.ClapModel`."""

import math
from typing import Any

from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
)

from audioldm2_pl.hub.original.checkpoint import Moves, Weights, count, renamed

TEXT_HEAD_CHANNELS = 64  # of one head of RoBERTa

# Counters that transformers stores and the authors' file may not have.
OPTIONAL = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")

RENAMED = (
    (r"^text_branch\.", "text_model."),
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"audio_encoder\.bn0\.", "audio_encoder.batch_norm."),
    (r"\.blocks\.(\d+)\.norm1\.", r".blocks.\1.layernorm_before."),
    (r"\.blocks\.(\d+)\.norm2\.", r".blocks.\1.layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"^(text|audio)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(text|audio)_projection\.2\.", r"\1_projection.linear2."),
)


def text_config(weights: Weights) -> ClapTextConfig:
    branch = "text_branch."
    vocabulary, width = weights[branch + "embeddings.word_embeddings.weight"].shape
    return ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=count(weights, r"text_branch\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, width // TEXT_HEAD_CHANNELS),
        intermediate_size=weights[branch + "encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=weights[branch + "embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=weights[branch + "embeddings.token_type_embeddings.weight"].shape[0],
        projection_dim=weights["text_projection.2.weight"].shape[0],
    )


def audio_config(weights: Weights) -> ClapAudioConfig:
    """HTS-AT's sizes. Its square's side is read off the masks of the shifted windows, 256 where there are none."""
    branch = "audio_branch."
    width, _, patch, _ = weights[branch + "patch_embed.proj.weight"].shape
    stages = count(weights, r"audio_branch\.layers\.(\d+)\.")
    tables = [
        weights[f"{branch}layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(stages)
    ]  # ((2 w - 1)², heads)
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    mask = weights.get(f"{branch}layers.0.blocks.1.attn_mask")  # (windows, w², w²)
    return ClapAudioConfig(
        num_mel_bins=weights[branch + "bn0.weight"].shape[0],
        spec_size=256 if mask is None else math.isqrt(mask.shape[0]) * window * patch,
        window_size=window,
        patch_size=patch,
        patch_stride=[patch, patch],
        patch_embeds_hidden_size=width,
        hidden_size=width * 2 ** (stages - 1),
        depths=[count(weights, rf"audio_branch\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
        num_attention_heads=[table.shape[1] for table in tables],
        num_hidden_layers=stages,
        mlp_ratio=weights[branch + "layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width,
        projection_dim=weights["audio_projection.2.weight"].shape[0],
    )


def build_clap(weights: Weights) -> tuple[ClapModel, Moves]:
    text, audio = text_config(weights), audio_config(weights)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=text.projection_dim))

    def moves() -> Moves:
        for key, name, tensor in renamed(weights, RENAMED):
            if ".attention.self.qkv." in name:
                for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                    yield key, name.replace("qkv", part), third
            else:
                yield key, name, tensor

    return model, moves()


def text_only(clap: ClapModel) -> ClapTextModelWithProjection:
    """CLAP for text alone, what AudioLDM 1's folder holds."""
    config: Any = clap.config.text_config
    model = ClapTextModelWithProjection(config)
    model.load_state_dict({k: v for k, v in clap.state_dict().items() if k.startswith("text_")})
    return model


def feature_extractor(clap: ClapModel) -> ClapFeatureExtractor:
    """The front end of LAION's CLAP without fusion: 48 kHz, 10 s."""
    config: Any = clap.config.audio_config
    return ClapFeatureExtractor(
        feature_size=config.num_mel_bins,
        sampling_rate=48_000,
        hop_length=480,
        max_length_s=10,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=14_000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
