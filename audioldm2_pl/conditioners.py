"""Condition encoders: CLAP for text and sound, FLAN-T5 for text. Each gives a `Condition` (embedding, mask).

With a `pretrained` hub id or folder an encoder is the published one; with `pretrained: null` it is a small one with
random weights, built from the config alone, tokenizer included, so that nothing is downloaded. Both are
transformers' own classes and save in the layout that diffusers' AudioLDM2Pipeline loads.

Letters: B batch, T samples, F frames, M mel bins, L tokens, D embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, gcd

import torch
import torch.nn.functional as F
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded
from audioldm2_pl.models.condition import Condition
from audioldm2_pl.models.gelu import fuse_gelu
from audioldm2_pl.tokens import tokenize, unread

__all__ = [
    "CLAP",
    "T5",
    "CLAPConfig",
    "CLAPMel",
    "Condition",
    "T5Config",
    "build_roberta_tokenizer",
    "build_t5_tokenizer",
    "resample",
]


def load_pretrained(kind: type, source: str, **options):
    """`kind.from_pretrained(source)`; UserError where `source` is neither a folder nor a hub id."""
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load {kind.__name__} from {source!r} ({reason}); "
            "give a folder that holds one, or a hub id where there is a network"
        ) from None


@lru_cache(maxsize=16)
def sinc_kernel(from_rate: int, to_rate: int, device: torch.device) -> tuple[Tensor, int]:
    """Kaiser-windowed sinc filters, one per output phase: (to_rate, 1, taps), and the taps before time zero.

    The rates have no common divisor. The cut-off lies 5 % below the lower Nyquist frequency.
    """
    cutoff = 0.95 * min(1.0, to_rate / from_rate)  # of the input's Nyquist frequency
    half_width = ceil(64 / cutoff)  # input samples: 64 zero crossings a side
    taps = torch.arange(-half_width, half_width + from_rate, dtype=torch.float64)
    phases = torch.arange(to_rate, dtype=torch.float64) * from_rate / to_rate
    time = taps[None] - phases[:, None]  # (to_rate, taps), input samples
    edge = (time / half_width).clamp(-1.0, 1.0)
    beta = torch.tensor(14.77, dtype=torch.float64)  # side lobes below -140 dB
    window = torch.special.i0(beta * (1.0 - edge.square()).sqrt()) / torch.special.i0(beta)
    kernel = cutoff * torch.sinc(cutoff * time) * window * (edge.abs() < 1.0)
    return kernel.float().unsqueeze(1).to(device), half_width


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """waveform (B, T) at `from_rate` Hz => (B, ceil(T * to_rate / from_rate)) at `to_rate` Hz, on its device."""
    if from_rate == to_rate:
        return waveform
    divisor = gcd(from_rate, to_rate)
    step, num_phases = from_rate // divisor, to_rate // divisor
    num_samples = ceil(waveform.shape[1] * num_phases / step)
    kernel, half_width = sinc_kernel(step, num_phases, waveform.device)
    with torch.autocast(waveform.device.type, enabled=False):
        padded = F.pad(waveform.float().unsqueeze(1), (half_width, half_width + step))
        phases = F.conv1d(padded, kernel, stride=step)  # (B, num_phases, T / step)
    return phases.transpose(1, 2).flatten(1)[:, :num_samples]


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


def build_roberta_tokenizer(max_length: int) -> "transformers.RobertaTokenizer":
    """A byte-level RoBERTa tokenizer without merges: 256 bytes and 5 special tokens, so nothing is unknown."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def build_t5_tokenizer(words: Sequence[str] = (), max_length: int = 128) -> "transformers.T5Tokenizer":
    """A T5 tokenizer of printable ASCII characters; each of `words` is one further piece wherever a word begins.

    The unigram model takes the split with the highest sum of scores: any listed word beats its own characters, and
    of two listed words the longer wins.
    """
    characters = [chr(code) for code in range(0x21, 0x7F)]
    pieces = dict.fromkeys(f"▁{word}" for word in words if word)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(character, -3.0) for character in characters]
    vocabulary += [(piece, -1.0) for piece in pieces]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)


@dataclass
class CLAPConfig:
    """The published CLAP, or with `pretrained: null` a small one of the sizes below."""

    pretrained: str | None = "laion/clap-htsat-unfused"  # hub id or folder; null builds a small one
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

    @property
    def num_frames(self) -> int:
        return self.clip_seconds * self.sample_rate // self.hop_length + 1

    def check(self) -> None:
        """UserError for sizes with which transformers' ClapModel can be built but does not run."""
        stages = len(self.depths)
        if len(self.audio_heads) != stages:
            raise UserError(f"conditioners.clap.audio_heads has to have {stages} entries, one for each of depths")
        if self.spec_size % self.num_mel_bins:
            raise UserError(
                f"conditioners.clap.spec_size={self.spec_size} is not a multiple of "
                f"num_mel_bins={self.num_mel_bins}; make it {2 * self.num_mel_bins}"
            )
        room = self.spec_size**2 // self.num_mel_bins
        if room < self.num_frames:
            raise UserError(
                f"conditioners.clap.spec_size={self.spec_size} holds {room} frames, but {self.clip_seconds} s are "
                f"{self.num_frames}; raise spec_size or hop_length"
            )
        side = self.patch_size * 2 ** (stages - 1)  # of the square under one token of the last stage
        if self.num_mel_bins % side:
            raise UserError(
                f"conditioners.clap.num_mel_bins={self.num_mel_bins} is not a multiple of {side}, "
                "patch_size * 2^(stages - 1); lower patch_size or shorten depths"
            )
        for key, width, heads in (
            ("audio_heads", self.patch_embeds_hidden_size, self.audio_heads[0]),
            ("text_heads", self.text_width, self.text_heads),
        ):
            if width % heads:
                raise UserError(f"conditioners.clap.{key}: {heads} heads do not divide a width of {width}")


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

    def __init__(self, model, tokenizer, feature_extractor):
        super().__init__()
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
        config.check()
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
    def from_parts(cls, model, tokenizer, feature_extractor) -> "CLAP":
        """A CLAP around parts that are loaded already, such as a model folder's."""
        return cls(model, tokenizer, feature_extractor)

    @property
    def embedding_dim(self) -> int:
        return self.model.config.projection_dim

    def encode_text(self, texts: Sequence[str]) -> Condition:
        tokens = tokenize(self.tokenizer, texts, self.max_text_tokens).to(self.model.logit_scale_a.device)
        output = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return single(output.pooler_output)  # type: ignore[union-attr]

    def unread(self, text: str) -> list[str]:
        return unread("CLAP", self.tokenizer, text, self.max_text_tokens)

    def encode_audio(self, waveform: Tensor, sample_rate: int) -> Condition:
        """Embeds waveforms (B, T); of clips longer than CLAP's window the first part counts."""
        log_mel = self.mel(resample(waveform, sample_rate, self.feature_extractor.sampling_rate))
        output = self.model.get_audio_features(input_features=log_mel)
        return single(output.pooler_output)  # type: ignore[union-attr]

    def contrastive_loss(self, audio: Tensor, text: Tensor, same: Tensor | None = None) -> Tensor:
        """Symmetric cross-entropy over the similarities of paired embeddings (B, D).

        Wu et al. 2023, Eq. 2. Pairs that `same` (B, B) marks, clips with one caption, are no negatives of each other.
        """
        target = torch.arange(len(audio), device=audio.device)
        with torch.autocast(audio.device.type, enabled=False):  # bfloat16 rounds a scaled logit by up to 0.25
            similarity = audio.float() @ text.float().T  # (B, B), a row per sound
            by_audio = self.model.logit_scale_a.exp() * similarity
            by_text = self.model.logit_scale_t.exp() * similarity.T
            if same is not None:
                ignored = same & (target[:, None] != target[None, :])
                # after the scaling: the gradient of a scale times infinity is not a number
                by_audio = by_audio.masked_fill(ignored, float("-inf"))
                by_text = by_text.masked_fill(ignored.T, float("-inf"))
            return (F.cross_entropy(by_audio, target) + F.cross_entropy(by_text, target)) / 2


def single(embedding: Tensor) -> Condition:
    """One vector per clip (B, D) as a condition of length one, (B, 1, D)."""
    mask = torch.ones(len(embedding), 1, dtype=torch.bool, device=embedding.device)
    return Condition(embedding.unsqueeze(1), mask)


@dataclass
class T5Config:
    """The published FLAN-T5 encoder, or with `pretrained: null` a small one of the sizes below."""

    pretrained: str | None = "google/flan-t5-large"  # hub id or folder; null builds a small one
    max_length: int = bounded(128, ge=2, le=65_536)  # tokens of a prompt that are read, the end mark included
    words: list[str] = field(default_factory=list)  # that are one token each; others are spelt
    d_model: int = bounded(128, ge=1, le=65_536)  # size of the embedding
    num_layers: int = bounded(2, ge=1, le=1_000)
    num_heads: int = bounded(4, ge=1, le=1_024)
    d_kv: int = bounded(32, ge=1, le=65_536)  # size of one attention head
    d_ff: int = bounded(256, ge=1, le=65_536)  # width of the feed-forward layers
    dropout: float = bounded(0.0, ge=0, lt=1)  # while it trains


class T5(nn.Module):
    """texts => Condition (B, L, D): FLAN-T5's encoder, padded to the longest prompt (AudioLDM 2, section III-B).

    Prompts are cut at the tokenizer's `model_max_length`.
    """

    def __init__(self, model, tokenizer):
        super().__init__()
        fuse_gelu(model)
        self.model: transformers.T5EncoderModel = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def build(cls, config: T5Config) -> "T5":
        """The pretrained encoder that the config names, or a small one with random weights."""
        if config.pretrained is not None:
            tokenizer = load_pretrained(transformers.AutoTokenizer, config.pretrained)
            tokenizer.model_max_length = config.max_length  # saved with it: AudioLDM2Pipeline cuts there, too
            model = load_pretrained(transformers.T5EncoderModel, config.pretrained, dtype=torch.float32)
            return cls(model, tokenizer)
        tokenizer = build_t5_tokenizer(config.words, config.max_length)
        sizes = transformers.T5Config(
            vocab_size=len(tokenizer),
            d_model=config.d_model,
            d_kv=config.d_kv,
            d_ff=config.d_ff,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout,
            feed_forward_proj="gated-gelu",
        )
        return cls(transformers.T5EncoderModel(sizes), tokenizer)

    @classmethod
    def from_parts(cls, model, tokenizer) -> "T5":
        """A T5 around parts that are loaded already, such as a model folder's."""
        return cls(model, tokenizer)

    @property
    def embedding_dim(self) -> int:
        return self.model.config.d_model

    def unread(self, text: str) -> list[str]:
        return unread("T5", self.tokenizer, text, self.tokenizer.model_max_length)

    def forward(self, texts: Sequence[str]) -> Condition:
        tokens = tokenize(self.tokenizer, texts).to(self.model.device)
        mask = tokens["attention_mask"]  # (B, L)
        output = self.model(input_ids=tokens["input_ids"], attention_mask=mask)
        return Condition(output.last_hidden_state, mask.bool())
