"""Phonemes, GPT-2's second condition where speech is made (paper §III-B).

espeak-ng tells how a transcript is spoken; a VITS text encoder (Kim et al. 2021, arXiv:2106.06103) turns the symbols
into vectors. The encoder is transformers' `VitsModel`, of which the published speech folders too use the text encoder
alone. Its learned positions belong to the projection into GPT-2.

Letters: B batch, L symbols, D width.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
import transformers
from torch import nn

from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.tokenizers import lines_of
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import bounded, check_fields, nearest

SUBFOLDERS = ("text_encoder_2", "tokenizer_2")  # the published ones
BESIDE_T5 = ("text_encoder_3", "tokenizer_3")  # where T5 has those
PAD = "_"
STOP = "⚠"
SYMBOLS = (
    PAD
    + ';:,.!?¡¿—…"«»“” '
    + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    + "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩'ᵻ"
    + "♪☎☒☝"
    + STOP
)
ABBREVIATIONS = {
    "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior", "maj": "major",
    "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant", "hon": "honorable", "sgt": "sergeant",
    "capt": "captain", "esq": "esquire", "ltd": "limited", "col": "colonel", "ft": "fort",
}  # fmt: skip
ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.", re.IGNORECASE)


@dataclass
class PhonemeConfig:
    """The encoder of transcripts; it starts at random and learns in the gpt2 stage. Defaults: the authors' sizes."""

    language: str = "en-us"  # of the transcripts, one of espeak-ng's
    hidden_size: int = bounded(192, ge=1, le=65_536)  # D
    num_layers: int = bounded(6, ge=1, le=1_000)
    num_heads: int = bounded(2, ge=1)
    ffn_dim: int = bounded(768, ge=1, le=65_536)  # width of the convolutions between attentions
    kernel_size: int = bounded(3, ge=1, le=1_000)  # of those convolutions
    dropout: float = bounded(0.1, ge=0, lt=1)  # while it trains
    max_length: int = bounded(310, ge=2, le=65_536)  # L: longer transcripts are cut, shorter ones padded
    pretrained: ClassVar[None] = None  # no encoder of phonemes alone is published

    def __post_init__(self) -> None:
        check_fields(self, "conditioners.phonemes.")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"conditioners.phonemes.num_heads={self.num_heads} does not divide a width of {self.hidden_size}"
            )
        if self.language != "en-us" and self.language not in (known := languages()):
            raise UserError(f"conditioners.phonemes.language={self.language!r}: {nearest(self.language, known)}")

    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def num_tokens(self) -> int:
        """Vectors of a condition."""
        return self.max_length

    def build(self) -> "PhonemeEncoder":
        return PhonemeEncoder.build(self)


def clean(transcript: str, language: str = "en-us") -> str:
    """Lower case and single spaces; of English ASCII letters, abbreviations written out: VITS's english_cleaners2."""
    text = unicodedata.normalize("NFKC", transcript).lower()
    if language.startswith("en-"):
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        text = ABBREVIATION.sub(lambda match: ABBREVIATIONS[match[1]], text)
    return re.sub(r"\s+", " ", text).strip()


@lru_cache(maxsize=1)
def prepare_espeak() -> None:
    """Points the phonemizer to the espeak-ng that comes as a wheel, unless the system's is asked for by the
    phonemizer's own variable. UserError where the packages are missing."""
    try:
        import espeakng_loader
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise UserError(f"speech needs the package {error.name}; install the project with [speech]") from None
    if "PHONEMIZER_ESPEAK_LIBRARY" not in os.environ:
        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())


def languages() -> list[str]:
    """Those that espeak-ng speaks, such as "de", "fr-fr" and "en-gb"."""
    prepare_espeak()
    from phonemizer.backend import EspeakBackend

    return list(EspeakBackend.supported_languages())


@lru_cache(maxsize=100_000)
def phonemes_of(transcript: str, language: str = "en-us") -> str:
    """IPA with stress and punctuation: "Hello." => "həlˈoʊ."."""
    prepare_espeak()
    from phonemizer import phonemize

    spoken = phonemize(
        clean(transcript, language), language=language, backend="espeak", strip=True, preserve_punctuation=True,
        with_stress=True, language_switch="remove-flags",
    )  # fmt: skip
    return re.sub(r"\s+", " ", str(spoken))


def build_vits_tokenizer(max_length: int, language: str = "en-us") -> transformers.VitsTokenizer:
    """One token a symbol; it phonemizes by itself where stock diffusers calls it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        vocabulary = {symbol: index for index, symbol in enumerate(SYMBOLS)}
        path.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        return transformers.VitsTokenizer(
            str(path), pad_token=PAD, unk_token=PAD, language=language, add_blank=False, normalize=False,
            phonemize=True, is_uroman=False, model_max_length=max_length,
        )  # fmt: skip


def build_vits(config: PhonemeConfig) -> transformers.VitsModel:
    """A VitsModel whose text encoder has the config's sizes; the rest is unused, and tiny."""
    sizes = transformers.VitsConfig(
        vocab_size=len(SYMBOLS), hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, ffn_dim=config.ffn_dim, ffn_kernel_size=config.kernel_size,
        layerdrop=0.0, hidden_dropout=config.dropout, attention_dropout=config.dropout,
        activation_dropout=config.dropout,
        flow_size=4, spectrogram_bins=4, upsample_initial_channel=4, upsample_rates=[2], upsample_kernel_sizes=[4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1, posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2, duration_predictor_filter_channels=4, depth_separable_num_layers=1,
        use_stochastic_duration_prediction=False, pad_token_id=0,
    )  # fmt: skip
    return transformers.VitsModel(sizes)


class PhonemeEncoder(nn.Module):
    """transcripts => Condition (B, L, D), padded to the tokenizer's `model_max_length`, for positions are learned."""

    name = "phonemes"
    reads = "transcript"
    hub_classes: ClassVar = {
        part: ("transformers", kind)
        for parts in (SUBFOLDERS, BESIDE_T5)
        for part, kind in zip(parts, ("VitsModel", "VitsTokenizer"))
    }
    stored: tuple[str, ...] = ()
    width_key = "hidden_size"  # of its config.json
    has_own_stage = False

    def __init__(self, model: transformers.VitsModel, tokenizer: transformers.VitsTokenizer):
        super().__init__()
        self.subfolders = SUBFOLDERS
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = int(tokenizer.model_max_length)
        self.language = tokenizer.language or "en-us"
        used = set(map(id, model.text_encoder.encoder.parameters())) | {id(model.text_encoder.embed_tokens.weight)}
        for parameter in model.parameters():
            # what gives no vectors never gets a gradient, at which DDP would stop
            parameter.requires_grad_(id(parameter) in used)

    @classmethod
    def build(cls, config: PhonemeConfig) -> "PhonemeEncoder":
        return cls(build_vits(config), build_vits_tokenizer(config.max_length, config.language))

    @classmethod
    def open(cls, load: Callable[[str], Any], subfolders: tuple[str, str] = SUBFOLDERS) -> "PhonemeEncoder":
        """Out of a model folder; `load(sub-folder)` gives a part."""
        encoder = cls(*map(load, subfolders))
        encoder.subfolders = subfolders
        return encoder

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    def encode(self, inputs: Mapping[str, Any]) -> Condition:
        """(B, L, D) of the transcripts, or of the phonemes made of them already; masked where there are none."""
        return self.vectors(inputs["phonemes"]) if "phonemes" in inputs else self(inputs["transcript"])

    def empty(self) -> Condition:
        """Of no transcript, (1, L, D), all masked."""
        return self([""])

    def parts(self) -> dict[str, Any]:
        return dict(zip(self.subfolders, (self.model, self.tokenizer)))

    @property
    def phonemize(self) -> Callable[[str], str]:
        """Transcript => phonemes, for the data workers."""
        return partial(phonemes_of, language=self.language)

    def tokens(self, phonemes: Sequence[str]) -> torch.Tensor:
        """Symbol numbers (B, L): the phonemes, the stop symbol, then padding; where nothing is said padding alone."""
        rows = []
        for symbols in phonemes:
            known = [self.tokenizer.encoder[symbol] for symbol in symbols if symbol in SYMBOLS]
            row = [*known[: self.max_length - 1], self.tokenizer.encoder[STOP]] if known else []
            rows.append(row + [0] * (self.max_length - len(row)))
        return torch.tensor(rows, device=self.model.device)

    def count_phonemes(self, transcript: str) -> int:
        """Symbols of a transcript, without the stop symbol."""
        return sum(symbol in SYMBOLS for symbol in self.phonemize(transcript))

    def unread(self, transcript: str) -> list[str]:
        """A line for what is cut off, and one for characters that are not spoken."""
        letters = [c for c in transcript if not c.isspace() and not unicodedata.combining(c)]
        unknown = [c for c in letters if not clean(c, self.language)]
        return lines_of("the phoneme encoder", self.count_phonemes(transcript) + 1, self.max_length, unknown)

    def forward(self, transcripts: Sequence[str]) -> Condition:
        return self.vectors([self.phonemize(transcript) for transcript in transcripts])

    def vectors(self, phonemes: Sequence[str]) -> Condition:
        """Strings of symbols => (B, L, D)."""
        tokens = self.tokens(phonemes)
        mask = tokens != 0  # (B, L)
        output = self.model.text_encoder(
            input_ids=tokens, attention_mask=mask.long(), padding_mask=mask.unsqueeze(-1).to(self.model.dtype)
        )
        return Condition(output.last_hidden_state, mask)
