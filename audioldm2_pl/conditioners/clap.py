"""CLAP, for text and sound: one vector a clip.

Letters: B batch, T samples, F frames, M mel bins, D embedding size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from audioldm2_pl.audio import resample
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.pretrained import config_of, load_pretrained
from audioldm2_pl.conditioners.tokenizers import build_roberta_tokenizer, tokenize, unread
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields


class CLAPMel(nn.Module):
    """waveform (B, T) at the extractor's rate => decibel mel (B, 1, F, M): ClapFeatureExtractor's, on the device.

    Shorter clips are repeated a whole number of times and zero-padded. Of longer ones the first part is taken, where
    the extractor draws a random one.
    """

    filters: Tensor

    def __init__(self, extractor: "transformers.ClapFeatureExtractor"):
        super().__init__()
        self.num_fft = extractor.fft_window_size
        self.hop_length = extractor.hop_length
        self.num_samples = round(extractor.nb_max_samples)
        self.padding = extractor.padding
        filters = torch.from_numpy(extractor.mel_filters_slaney)  # (num_fft // 2 + 1, M)
        self.register_buffer("filters", filters.float(), persistent=False)

    def fit(self, waveform: Tensor) -> Tensor:
        waveform = waveform[:, : self.num_samples]
        if self.padding == "repeatpad":
            waveform = waveform.repeat(1, self.num_samples // waveform.shape[1])
        elif self.padding == "repeat":
            waveform = waveform.repeat(1, ceil(self.num_samples / waveform.shape[1]))
            waveform = waveform[:, : self.num_samples]
        return F.pad(waveform, (0, self.num_samples - waveform.shape[1]))

    def forward(self, waveform: Tensor) -> Tensor:
        # 100 dB below a pure tone single precision is 0.1 dB off; Apple's GPUs have no other
        dtype = torch.float32 if waveform.device.type == "mps" else torch.float64
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                self.fit(waveform.to(dtype)),
                self.num_fft,
                self.hop_length,
                window=torch.hann_window(self.num_fft, dtype=dtype, device=waveform.device),
                pad_mode="reflect",
                return_complex=True,
            )  # (B, num_fft // 2 + 1, F)
            power = (spectrum.real.square() + spectrum.imag.square()).float()
            mel = power.transpose(1, 2) @ self.filters.float()  # (B, F, M)
            return 10.0 * mel.clamp(min=1e-10).log10().unsqueeze(1)


@dataclass
class CLAPConfig:
    """The published CLAP, or with `pretrained: null` a small one of the sizes below."""

    pretrained: str | None = "laion/clap-htsat-unfused"  # hub id or folder; null builds a small one
    hears: Literal["text", "waveform"] = "text"  # what training encodes; generation encodes what the request gives
    empty_probability: float = bounded(0.0, ge=0, le=1)  # of "" in a clip's place in training; the authors' code: 0.1
    projection_dim: int = bounded(512, ge=1, le=65_536)  # size of the embedding that text and sound share
    sample_rate: int = bounded(16_000, ge=1_000, le=384_000)  # Hz, of the sound that CLAP sees
    clip_seconds: int = bounded(3, ge=1, le=600)  # that CLAP sees; shorter clips are repeated, zero-padded
    window_length: int = bounded(1024, ge=16, le=65_536)  # samples in a Fourier transform
    hop_length: int = bounded(320, ge=1, le=65_536)  # samples from one frame to the next
    num_mel_bins: int = bounded(64, ge=1, le=4_096)  # has to divide spec_size
    spec_size: int = bounded(128, ge=1, le=65_536)  # side of the square into which the mel is folded
    patch_size: int = bounded(8, ge=1, le=65_536)  # side of one audio token in that square
    patch_embeds_hidden_size: int = bounded(32, ge=1, le=65_536)  # audio width, doubled by each further stage
    depths: list[int] = bounded(lambda: [1, 1, 2], ge=1, le=1_000, min_length=1)  # audio layers of each stage
    audio_heads: list[int] = bounded(lambda: [2, 4, 8], ge=1, min_length=1)  # attention heads of each stage
    text_width: int = bounded(128, ge=1, le=65_536)  # hidden size of the text encoder
    text_layers: int = bounded(2, ge=1, le=1_000)
    text_heads: int = bounded(4, ge=1)
    max_text_tokens: int = bounded(128, ge=3, le=65_536)  # bytes of a prompt, and two marks at its ends
    dropout: float = bounded(0.0, ge=0, lt=1)  # of both encoders, while they train

    def __post_init__(self) -> None:
        check_fields(self, "conditioners.clap.")
        if self.pretrained is None:
            self.check_sizes()

    def check_sizes(self) -> None:
        """UserError for sizes with which transformers' ClapModel cannot be built, or does not run."""
        key, stages = "conditioners.clap", len(self.depths)
        if len(self.audio_heads) != stages:
            raise UserError(f"{key}.audio_heads has to have {stages} entries, one for each of depths")
        if self.spec_size % self.num_mel_bins:
            raise UserError(
                f"{key}.spec_size={self.spec_size} is not a multiple of num_mel_bins={self.num_mel_bins}; make it "
                f"{2 * self.num_mel_bins}"
            )
        room = self.spec_size**2 // self.num_mel_bins
        if room < self.num_frames:
            raise UserError(
                f"{key}.spec_size={self.spec_size} holds {room} frames, but {self.clip_seconds} s are "
                f"{self.num_frames}; raise spec_size or hop_length"
            )
        side = self.patch_size * 2 ** (stages - 1)  # of the square under one token of the last stage
        if self.num_mel_bins % side:
            raise UserError(
                f"{key}.num_mel_bins={self.num_mel_bins} is not a multiple of {side}, patch_size * 2^(stages - 1); "
                "lower patch_size or shorten depths"
            )
        if self.window_length // 2 >= self.clip_seconds * self.sample_rate:
            raise UserError(f"{key}.window_length={self.window_length} is longer than {self.clip_seconds} s of sound")
        widths = [(self.text_width, self.text_heads, "text_heads")]
        widths += [(self.patch_embeds_hidden_size << i, n, "audio_heads") for i, n in enumerate(self.audio_heads)]
        for width, heads, name in widths:
            if width % heads:
                raise UserError(f"{key}.{name}: {heads} heads do not divide a width of {width}")

    @property
    def num_frames(self) -> int:
        return self.clip_seconds * self.sample_rate // self.hop_length + 1

    @property
    def width(self) -> int:
        published = config_of(self.pretrained) if self.pretrained else {}
        return published.get("projection_dim", self.projection_dim)

    @property
    def num_tokens(self) -> int:
        """Vectors of a condition."""
        return 1

    def build(self) -> "CLAP":
        return CLAP.build(self)


def build_clap_model(config: CLAPConfig, vocab_size: int) -> "transformers.ClapModel":
    """transformers' ClapModel of the config's sizes, with random weights."""
    stages = len(config.depths)
    last_side = config.spec_size // config.patch_size // 2 ** (stages - 1)  # audio tokens, last stage
    text = transformers.ClapTextConfig(
        vocab_size=vocab_size,
        hidden_size=config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        intermediate_size=4 * config.text_width,
        # positions count from pad_token_id + 1
        max_position_embeddings=config.max_text_tokens + 2,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    audio = transformers.ClapAudioConfig(
        num_mel_bins=config.num_mel_bins,
        spec_size=config.spec_size,
        patch_size=config.patch_size,
        patch_stride=[config.patch_size, config.patch_size],
        # the relative position bias of a window wider than its stage has the wrong shape
        window_size=min(8, last_side),
        patch_embeds_hidden_size=config.patch_embeds_hidden_size,
        hidden_size=config.patch_embeds_hidden_size * 2 ** (stages - 1),
        depths=list(config.depths),
        num_attention_heads=list(config.audio_heads),
        num_hidden_layers=stages,
        hidden_dropout_prob=config.dropout,
    )
    joint = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=config.projection_dim)
    return transformers.ClapModel(joint)


class CLAP(nn.Module):
    """Text and sound in one space: both encoders give one L2-normalised vector (B, 1, D).

    Wu et al. 2023, "Large-scale contrastive language-audio pretraining"; AudioLDM 2, section III-B.
    Raises UserError for a checkpoint with feature fusion, whose crops are random.
    """

    name = "clap"
    hub_classes: ClassVar = {
        "text_encoder": ("transformers", "ClapModel"),
        "tokenizer": ("transformers", "RobertaTokenizer"),
        "feature_extractor": ("transformers", "ClapFeatureExtractor"),
    }
    media = ("audio",)
    width_key = "projection_dim"  # of its config.json
    has_own_stage = True

    def __init__(self, model, tokenizer, feature_extractor):
        super().__init__()
        self.reads: Literal["text", "waveform"] = "text"  # in training; generation gives what it has
        self.empty_probability = 0.0  # of "" in a clip's place in training
        if model.config.audio_config.enable_fusion or feature_extractor.truncation == "fusion":
            raise UserError("this CLAP fuses random crops; use an unfused one, laion/clap-htsat-unfused")
        self.model: transformers.ClapModel = model.eval()
        self.tokenizer = tokenizer
        self.feature_extractor = feature_extractor
        self.mel = CLAPMel(feature_extractor)
        self.max_text_tokens = model.config.text_config.max_position_embeddings - 2

    @classmethod
    def build(cls, config: CLAPConfig) -> "CLAP":
        """The pretrained CLAP that the config names, or a small one with random weights."""
        if config.pretrained is not None:
            return cls(
                load_pretrained(transformers.ClapModel, config.pretrained, dtype=torch.float32),
                load_pretrained(transformers.AutoTokenizer, config.pretrained),
                load_pretrained(transformers.ClapFeatureExtractor, config.pretrained),
            )
        tokenizer = build_roberta_tokenizer(config.max_text_tokens)
        extractor = transformers.ClapFeatureExtractor(
            feature_size=config.num_mel_bins,
            sampling_rate=config.sample_rate,
            hop_length=config.hop_length,
            max_length_s=config.clip_seconds,
            fft_window_size=config.window_length,
            frequency_min=50,
            frequency_max=min(14_000, config.sample_rate // 2),
            truncation="rand_trunc",
            padding="repeatpad",
        )
        return cls(build_clap_model(config, len(tokenizer)), tokenizer, extractor)

    @classmethod
    def open(cls, load: Callable[[str], Any]) -> "CLAP | CLAPText":
        """Out of a model folder; `load(sub-folder)` gives a part."""
        model, tokenizer = load("text_encoder"), load("tokenizer")
        if isinstance(model, transformers.ClapTextModelWithProjection):
            return CLAPText(model, tokenizer)
        return cls(model, tokenizer, load("feature_extractor"))

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    @property
    def stored(self) -> tuple[str, ...]:
        return ("clap",) if self.reads == "waveform" else ("clap_text",)

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """One vector a clip, (B, 1, D), of its sound where that is what CLAP reads or what a request gives."""
        features = inputs.get("features", {})
        if self.stored[0] in features:
            return Condition.of(features[self.stored[0]])
        if self.reads == "waveform" and "waveform" in inputs:
            return self.encode_audio(inputs["waveform"], inputs["sample_rate"])
        return self.encode_text(inputs["text"]).replaced(
            inputs.get("audio"), lambda sounds: self.encode_audio(torch.stack(sounds), inputs["sample_rate"])
        )

    def empty(self) -> Condition:
        """Of no text, (1, 1, D)."""
        return self.encode_text([""])

    @property
    def text_model(self) -> nn.ModuleList:
        """The half that embeds text."""
        return nn.ModuleList([self.model.text_model, self.model.text_projection])

    def parts(self) -> dict[str, Any]:
        return dict(zip(self.hub_classes, (self.model, self.tokenizer, self.feature_extractor)))

    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Texts => (B, 1, D)."""
        tokens = tokenize(self.tokenizer, texts, self.max_text_tokens).to(self.model.logit_scale_a.device)
        output = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return Condition.of(output.pooler_output)  # type: ignore[union-attr]

    def unread(self, text: str) -> list[str]:
        return unread("CLAP", self.tokenizer, text, self.max_text_tokens)

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Condition:
        """Waveforms (B, T) => (B, 1, D); of clips longer than CLAP's window the first part counts."""
        waveform = waveform.to(self.mel.filters.device)
        log_mel = self.mel(resample(waveform, sample_rate, self.feature_extractor.sampling_rate))
        output = self.model.get_audio_features(input_features=log_mel)
        return Condition.of(output.pooler_output)  # type: ignore[union-attr]


class CLAPText(nn.Module):
    """The text half of `CLAP`, as AudioLDM 1's published folders hold it: (B, 1, D), L2-normalised, of prompts."""

    name = "clap"
    reads = "text"
    hub_classes: ClassVar = {
        "text_encoder": ("transformers", "ClapTextModelWithProjection"),
        "tokenizer": ("transformers", "RobertaTokenizer"),
    }
    stored = ("clap_text",)
    has_own_stage = True

    def __init__(self, model: transformers.ClapTextModelWithProjection, tokenizer):
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_text_tokens = model.config.max_position_embeddings - 2

    @property
    def width(self) -> int:
        return self.model.config.projection_dim

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """One vector a prompt, (B, 1, D)."""
        return self.encode_text(inputs["text"])

    def empty(self) -> Condition:
        """Of no text, (1, 1, D)."""
        return self.encode_text([""])

    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Texts => (B, 1, D)."""
        tokens = tokenize(self.tokenizer, texts, self.max_text_tokens).to(self.model.device)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return Condition.of(F.normalize(output.text_embeds, dim=-1))

    def unread(self, text: str) -> list[str]:
        return unread("CLAP", self.tokenizer, text, self.max_text_tokens)

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Condition:
        """Raises UserError: waveforms (B, T) have no encoder here."""
        raise UserError(
            "this model's text_encoder/ holds CLAP for text alone, which cannot choose among candidates or train; "
            "put a whole CLAP with its feature_extractor/ there"
        )

    @property
    def text_model(self) -> nn.Module:
        return self.model

    def parts(self) -> dict[str, Any]:
        return dict(zip(self.hub_classes, (self.model, self.tokenizer)))
