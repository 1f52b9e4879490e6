"""Rivals of a few thousand random weights, saved by their own libraries in the layout that hubs have."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from parity import audioldm1_folder, draw_weights, small_folder
from tokenizers.pre_tokenizers import ByteLevel

from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer, build_t5_tokenizer

diffusers: Any = import_module("diffusers")  # untyped: both find their classes when they are asked for
transformers: Any = import_module("transformers")

ATTENTION: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
T5: dict[str, Any] = {"vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def loud(network: Any) -> Any:
    """All weights drawn, so that no caption and no noise is lost in layers that begin at zero."""
    return draw_weights(network)


def clap(projection_dim: int = 16) -> Any:
    text: dict[str, Any] = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    audio = {
        "patch_embeds_hidden_size": 8,
        "depths": [1],
        "num_attention_heads": [2],
        "hidden_size": 8,
        "spec_size": 64,
    }
    text |= {"intermediate_size": 16, "projection_dim": projection_dim}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=projection_dim)
    return loud(transformers.ClapModel(config))


def musicldm(folder: Path) -> None:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4, class_embed_type="simple_projection", projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True, attention_head_dim=4, mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=(8, 16),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=16,
            sampling_rate=16_000,
            upsample_initial_channel=16,
            upsample_rates=[10, 16],
            upsample_kernel_sizes=[20, 32],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            normalize_before=False,
        )
    )
    diffusers.MusicLDMPipeline(
        vae=loud(vae), text_encoder=clap(), tokenizer=build_roberta_tokenizer(32),
        feature_extractor=transformers.ClapFeatureExtractor(), unet=loud(unet),
        scheduler=diffusers.DDIMScheduler(), vocoder=loud(vocoder),
    ).save_pretrained(folder)  # fmt: skip


def oobleck() -> Any:
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[4, 8], channel_multiples=[1, 2], decoder_channels=4,
        decoder_input_channels=8, audio_channels=2, sampling_rate=4_000,
    )  # fmt: skip


def stable_audio(folder: Path) -> None:
    transformer = diffusers.StableAudioDiTModel(
        sample_size=128, in_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_key_value_attention_heads=1, out_channels=8, cross_attention_dim=16, time_proj_dim=8,
        global_states_input_dim=32, cross_attention_input_dim=16,
    )  # fmt: skip
    diffusers.StableAudioPipeline(
        vae=oobleck(), text_encoder=loud(transformers.T5EncoderModel(transformers.T5Config(**T5))),
        projection_model=loud(diffusers.StableAudioProjectionModel(16, 16, 0, 512)),
        tokenizer=build_t5_tokenizer(max_length=32), transformer=loud(transformer),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            sigma_min=0.3, sigma_max=500, solver_order=2, prediction_type="v_prediction", sigma_data=1.0,
            sigma_schedule="exponential",
        ),
    ).save_pretrained(folder)  # fmt: skip


def byte_vocabulary(*special: str) -> dict[str, int]:
    return {piece: number for number, piece in enumerate([*special, *sorted(ByteLevel.alphabet())])}


def stable_audio_3(folder: Path) -> None:
    text: dict[str, Any] = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "pad_token_id": 0,
        "sliding_window": 16, "query_pre_attn_scalar": 8, **ATTENTION,
    }  # fmt: skip
    config = transformers.T5GemmaConfig(encoder=text, decoder=text, is_encoder_decoder=False)
    characters = {chr(code): code for code in range(0x21, 0x7F)}
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5, **characters}
    vae = diffusers.AutoencoderSAME(
        audio_channels=2, patch_size=16, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(4,),
        encoder_transformer_depths=(1,), latent_dim=8, dim_heads=8, ff_mult=1, encoder_sinusoidal_blocks=(0,),
        decoder_sinusoidal_blocks=(0,), sampling_rate=4_000,
    )  # fmt: skip
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=8, embed_dim=16, depth=1, num_heads=2, cond_token_dim=16, global_cond_dim=16, local_add_cond_dim=9,
        timestep_features_dim=8, ff_mult=1.0, num_memory_tokens=2,
    )  # fmt: skip
    diffusers.StableAudio3Pipeline(
        vae=loud(vae), text_encoder=loud(transformers.T5GemmaEncoderModel(config)),
        tokenizer=transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=32),
        duration_embedder=diffusers.StableAudio3DurationEmbedder(16, 8), transformer=loud(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ).save_pretrained(folder)  # fmt: skip


def ace_step(folder: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, **ATTENTION}
    text = transformers.Qwen3Config(vocab_size=512, num_hidden_layers=1, **sizes)
    tokenizer = transformers.Qwen2Tokenizer(vocab=byte_vocabulary("<|endoftext|>"), merges=[])
    conditions = diffusers.AceStepConditionEncoder(
        text_hidden_dim=16, timbre_hidden_dim=8, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, **sizes,
    )  # fmt: skip
    diffusers.AceStepPipeline(
        vae=oobleck(), text_encoder=loud(transformers.Qwen3Model(text)), tokenizer=tokenizer,
        transformer=loud(
            diffusers.AceStepTransformer1DModel(
                num_hidden_layers=1, in_channels=24, audio_acoustic_hidden_dim=8, encoder_hidden_size=16, **sizes
            )
        ),
        condition_encoder=loud(conditions),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    ).save_pretrained(folder)  # fmt: skip


def longcat(folder: Path) -> None:
    text = transformers.UMT5Config(**T5)
    diffusers.LongCatAudioDiTPipeline(
        vae=diffusers.LongCatAudioDiTVae(
            channels=4, c_mults=[1, 2], strides=[4, 8], latent_dim=8, encoder_latent_dim=16, downsampling_ratio=32,
            sample_rate=4_000,
        ),
        text_encoder=loud(transformers.UMT5EncoderModel(text)), tokenizer=build_t5_tokenizer(max_length=32),
        transformer=loud(
            diffusers.LongCatAudioDiTTransformer(dit_dim=16, dit_depth=1, dit_heads=2, dit_text_dim=16, latent_dim=8)
        ),
    ).save_pretrained(folder)  # fmt: skip


def riffusion(folder: Path) -> None:
    unet = diffusers.UNet2DConditionModel(
        sample_size=64, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = transformers.CLIPTextConfig(
        vocab_size=600, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, eos_token_id=1, bos_token_id=0,
    )  # fmt: skip
    letters = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = transformers.CLIPTokenizer(vocab={p: n for n, p in enumerate(pieces)}, merges=[], model_max_length=32)
    diffusers.StableDiffusionPipeline(
        vae=loud(vae), text_encoder=loud(transformers.CLIPTextModel(text)), tokenizer=tokenizer, unet=loud(unet),
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def musicgen(folder: Path) -> None:
    codec = transformers.EncodecConfig(
        sampling_rate=4_000, audio_channels=1, num_filters=4, num_residual_layers=1, upsampling_ratios=[5, 8],
        codebook_size=16, codebook_dim=8, hidden_size=8, num_lstm_layers=1, target_bandwidths=[1.6],
    )  # fmt: skip
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2, num_codebooks=4,
        pad_token_id=16, bos_token_id=16,
    )  # fmt: skip
    config = transformers.MusicgenConfig(text_encoder=transformers.T5Config(**T5), audio_encoder=codec, decoder=decoder)
    model = loud(transformers.MusicgenForConditionalGeneration(config))
    for layer in model.audio_encoder.quantizer.layers:  # a new codec's codebooks are zero
        layer.codebook.embed.normal_(generator=torch.Generator().manual_seed(0))
    model.generation_config.update(
        do_sample=True, guidance_scale=3.0, decoder_start_token_id=16, pad_token_id=16, bos_token_id=16
    )
    model.save_pretrained(folder)
    features = transformers.EncodecFeatureExtractor(sampling_rate=4_000)
    transformers.MusicgenProcessor(features, build_t5_tokenizer(max_length=32)).save_pretrained(folder)


def vits(folder: Path) -> None:
    """As MMS-TTS: of letters, not of phonemes."""
    letters = ["<pad>", "<unk>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    transformers.VitsTokenizer(folder / "vocab.json", phonemize=False).save_pretrained(folder)
    config = transformers.VitsConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16,
        flow_size=16, spectrogram_bins=16, upsample_initial_channel=16, upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
        prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=1, duration_predictor_filter_channels=16, sampling_rate=4_000,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.VitsModel(config).save_pretrained(folder)


def fastspeech2(folder: Path) -> None:
    letters = ["<blank>", "<unk>", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "<sos/eos>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "FastSpeech2ConformerTokenizer"}))
    model = transformers.FastSpeech2ConformerConfig(
        vocab_size=len(letters), hidden_size=16, num_mel_bins=8, encoder_num_attention_heads=2, encoder_layers=1,
        encoder_linear_units=16, decoder_layers=1, decoder_num_attention_heads=2, decoder_linear_units=16,
        speech_decoder_postnet_layers=2, speech_decoder_postnet_units=8, duration_predictor_channels=8,
        duration_predictor_layers=1, pitch_predictor_channels=8, pitch_predictor_layers=1,
        energy_predictor_channels=8, energy_predictor_layers=1,
    )  # fmt: skip
    vocoder = transformers.FastSpeech2ConformerHifiGanConfig(
        model_in_dim=8, upsample_initial_channel=16, upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.FastSpeech2ConformerWithHifiGanConfig(
        model_config=model.to_dict(), vocoder_config=vocoder.to_dict()
    )
    network = transformers.FastSpeech2ConformerWithHifiGan(config)
    loud(network.vocoder)
    network.save_pretrained(folder)


# system -> what writes a folder for it
BUILDERS: dict[str, Callable[[Path], Any]] = {
    "audioldm": audioldm1_folder,
    "audioldm2": lambda folder: small_folder(folder, speech=False),
    "musicldm": musicldm,
    "stable-audio": stable_audio,
    "stable-audio-3": stable_audio_3,
    "ace-step": ace_step,
    "longcat": longcat,
    "riffusion": riffusion,
    "musicgen": musicgen,
    "vits": vits,
    "fastspeech2": fastspeech2,
}
