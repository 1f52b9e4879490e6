"""An original checkpoint => a model folder, and the account of what became of every tensor."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from audioldm2_pl.conditioners.phonemes import PhonemeConfig, build_vits_tokenizer
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.original import audiomae, clap, language, text
from audioldm2_pl.hub.original.checkpoint import Checkpoint
from audioldm2_pl.hub.original.unet import build_unet
from audioldm2_pl.hub.original.vae import build_converted_vae
from audioldm2_pl.hub.original.vocoder import build_converted_vocoder
from audioldm2_pl.models.diffusion import DiffusionConfig, alphas_cumprod, build_scheduler

Heads = Literal["official", "hub"]

CLIP_FRAMES = 1024  # of log-mel in the clips of every published model: 10.24 s
TOKENIZERS = {"clap": "tokenizer", "t5": "tokenizer_2"}  # of which text encoder -> sub-folder


@dataclass
class ImportReport:
    """What an import wrote, left out and did not know."""

    kind: str = ""  # AudioLDM 2, AudioLDM 1, …
    film: bool = False  # the T-UNet reads CLAP's embedding beside the timestep, and no LOA
    written: dict[str, str] = field(default_factory=dict)  # sub-folder -> what is in it
    notes: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> the names left out on purpose
    unmatched: list[str] = field(default_factory=list)  # names that no network here has
    missing: list[str] = field(default_factory=list)  # sub-folders without which nothing is generated

    def __str__(self) -> str:
        lines = [f"{self.kind}:", *(f"  {part}/  {what}" for part, what in self.written.items()), *self.notes]
        if self.ignored:
            lines.append("left out on purpose:")
            lines += [f"  {len(names):5d}  {reason}" for reason, names in self.ignored.items()]
        lines.append(f"not matched: {len(self.unmatched)} tensors")
        lines += [f"  {name}" for name in self.unmatched]
        if self.missing:
            parts = ", ".join(f"{part}/" for part in self.missing)
            hint = " (tokenizers: or import again with --tokenizers)" if "tokenizer" in parts else ""
            lines.append(f"still missing: {parts}; copy them from a folder of the same kind into this one{hint}")
        return "\n".join(lines)


def import_checkpoint(
    file: str | Path,
    folder: str | Path,
    ema: bool = False,
    heads: Heads = "official",
    tokenizers: str | Path | None = None,
    vocoder_rates: Sequence[int] | None = None,
) -> ImportReport:
    """Writes every network that the file holds into the model folder, which keeps what it has beside them.

    Args:
        ema: the T-UNet's averaged weights instead of the last ones.
        heads: of the T-UNet: `official` are 32 channels each, `hub` 8 heads at every level.
        tokenizers: a model folder or hub id whose tokenizers are copied: a checkpoint has none.
        vocoder_rates: upsampling rates of a vocoder that is none of the published ones.

    Raises UserError for a file that is no checkpoint, holds none of the networks or only a part of one, and where the
    folder has one of the networks already. The folder is then as it was.
    """
    if heads not in get_args(Heads):
        raise UserError(f"--heads {heads}: official or hub")
    checkpoint = Checkpoint(Path(file), ema)
    found = [name for name, prefixes in checkpoint.prefixes.items() if prefixes]
    if not found:
        some = ", ".join(list(checkpoint.tensors)[:3]) or "no tensors"
        raise UserError(f"{file}: holds no network of AudioLDM 2, AudioLDM 1 or AudioMAE ({some}, …)")
    if "phonemes" in found:  # instead of T5
        found = [name for name in found if name != "t5"]
    wanted = [part for name, part in TOKENIZERS.items() if name in found]
    tokenizer_folder = None if tokenizers is None else find_tokenizers(tokenizers, wanted)

    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    report = ImportReport()
    with tempfile.TemporaryDirectory(prefix=".import-", dir=folder.parent) as new:
        staged = ModelFolder(new)
        for part, content in convert_parts(checkpoint, report, heads, vocoder_rates):
            check_free(folder / part)
            staged.save(part, content)
            report.written[part] = class_and_size(content)
        if tokenizer_folder is not None:
            for part in wanted:
                check_free(folder / part)
                shutil.copytree(tokenizer_folder / part, staged.path / part)
                report.written[part] = f"from {tokenizers}"
        report.unmatched, report.ignored = checkpoint.unmatched(), checkpoint.ignored
        install(staged.path, folder, report)
    expected = ModelFolder(folder).expected_parts()
    report.missing = [part for part in expected if "unet" in report.written and not (folder / part).is_dir()]
    return report


def check_free(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path.parent}: has {path.name}/ already; name another folder, or move that away")


def convert_parts(
    checkpoint: Checkpoint, report: ImportReport, heads: Heads, rates: Sequence[int] | None
) -> Iterator[tuple[str, Any]]:
    """(sub-folder, content), one network at a time, for the memory's sake; fills in the report's kind and notes."""
    has = {name: bool(prefixes) for name, prefixes in checkpoint.prefixes.items()}
    downsampling = 4
    if has["vae"]:
        vae = checkpoint.convert("vae", lambda w: build_converted_vae(w, scale_factor(checkpoint, report)))
        downsampling = 2 ** (len(vae.config.block_out_channels) - 1)
        yield "vae", vae
    if has["vocoder"]:
        network = checkpoint.convert(
            "vocoder", lambda w: build_converted_vocoder(w, rates), lambda name: name in ("mean", "scale")
        )
        yield "vocoder", network
    if has["unet"]:
        unet = checkpoint.convert("unet", lambda w: build_unet(w, heads, CLIP_FRAMES // downsampling))
        report.film = unet.config.film is not None
        report.kind = kind_of(unet.config, has)
        report.notes += unet_notes(checkpoint, unet.config, heads)
        yield "unet", unet
        yield "scheduler", scheduler_of(checkpoint)
    if has["clap"]:
        yield from convert_clap(checkpoint, report.film)
    if has["phonemes"]:
        yield from convert_phonemes(checkpoint, report)
    elif has["t5"]:
        yield "text_encoder_2", checkpoint.convert("t5", text.build_t5)
    if has["gpt2"]:
        yield from convert_language(checkpoint, has["phonemes"])
    if has["audiomae"]:
        yield "audiomae", convert_audiomae(checkpoint, report, 1 if has["phonemes"] else 8)
    report.kind = report.kind or ("AudioMAE" if sum(has.values()) == 1 and has["audiomae"] else "parts of AudioLDM")


def convert_clap(checkpoint: Checkpoint, film: bool) -> Iterator[tuple[str, Any]]:
    model = checkpoint.convert("clap", clap.build_clap, lambda name: name in clap.OPTIONAL)
    if film:
        prefix = checkpoint.prefixes["clap"][0]
        audio = [key for key in checkpoint.taken if key.startswith((f"{prefix}audio_", f"{prefix}logit_"))]
        checkpoint.taken -= set(audio)
        checkpoint.ignored["CLAP for sound: AudioLDM 1's folder has CLAP for text alone"] = sorted(audio)
        yield "text_encoder", clap.text_only(model)
    else:
        yield "text_encoder", model
        yield "feature_extractor", clap.feature_extractor(model)


def convert_phonemes(checkpoint: Checkpoint, report: ImportReport) -> Iterator[tuple[str, Any]]:
    """The phoneme encoder, and its tokenizer, which is known without a file."""
    encoder = checkpoint.convert("phonemes", text.build_phonemes, lambda name: not text.is_used_phoneme(name))
    report.notes.append("text_encoder_2/: the file holds VITS's text encoder; the rest, which has no use, is small")
    yield "text_encoder_2", encoder
    positions = checkpoint.tensors.get(checkpoint.prefixes["phonemes"][0] + language.POSITIONS)
    length = PhonemeConfig().max_length if positions is None else positions.shape[2]
    yield "tokenizer_2", build_vits_tokenizer(length)


def convert_language(checkpoint: Checkpoint, speech: bool) -> Iterator[tuple[str, Any]]:
    """GPT-2 and its projection, which for speech has the phonemes' learned positions."""
    num_vectors = 512 if speech else 8  # λ = 1, λ = 8
    yield (
        "language_model",
        checkpoint.convert("gpt2", lambda w: language.build_gpt2(w, num_vectors), lambda n: n == "lm_head.weight"),
    )
    positions = {}
    if speech:
        key = checkpoint.prefixes["phonemes"][0] + language.POSITIONS
        positions = {language.POSITIONS: checkpoint.tensors[key]} if key in checkpoint.tensors else {}
        checkpoint.taken |= {key} & checkpoint.tensors.keys()
    yield "projection_model", checkpoint.convert("gpt2", lambda w: language.build_projection(w | positions))


def convert_audiomae(checkpoint: Checkpoint, report: ImportReport, pooling: int) -> Any:
    prefix = checkpoint.prefixes["audiomae"][0]
    whole = audiomae.has_decoder(checkpoint.below(prefix))
    model = checkpoint.convert(
        "audiomae",
        lambda w: audiomae.build_audiomae(w, pooling),
        lambda name: not whole and name.startswith(audiomae.DECODER),
    )
    if not whole:
        report.notes.append("audiomae/: no decoder of plain blocks in the file; a fresh one, which LOA does not need")
        others = [prefix + key for key in checkpoint.below(prefix) if key.startswith(audiomae.DECODER)]
        if others:
            checkpoint.ignored["AudioMAE's decoder, of another kind than the one here"] = others
    return model


def scale_factor(checkpoint: Checkpoint, report: ImportReport) -> float:
    """1 / std of the latents, which the authors' code measures on its first batch and stores."""
    if "scale_factor" not in checkpoint.tensors:
        report.notes.append("vae/: no scale_factor in the file; scaling_factor is 1, set it before training on latents")
        return 1.0
    checkpoint.taken.add("scale_factor")
    return float(checkpoint.tensors["scale_factor"])


def scheduler_of(checkpoint: Checkpoint) -> Any:
    """DDIM over the file's noise schedule, the published one where it has none. Raises UserError for another shape."""
    betas = checkpoint.tensors.get("betas")
    config = DiffusionConfig()
    if betas is not None and betas.ndim != 1:
        raise UserError(f"{checkpoint.path}: betas are no schedule, their shape is {list(betas.shape)}")
    if betas is not None:
        config = DiffusionConfig(len(betas), float(betas[0]), float(betas[-1]))
        stored = torch.cumprod(1 - betas.double(), dim=0).float()
        if not torch.allclose(stored, alphas_cumprod(config), atol=1e-5):
            raise UserError(f"{checkpoint.path}: betas are no scaled-linear schedule; no other is known here")
    return build_scheduler(config)


def kind_of(config: Any, has: dict[str, bool]) -> str:
    if config.film is not None:
        return "AudioLDM 1" if not config.conditions else "AudioLDM 2 conditioned on CLAP alone"
    if has["phonemes"]:
        return "AudioLDM 2 for speech"
    if not has["gpt2"]:
        return "AudioLDM without GPT-2"
    return "AudioLDM 2 large" if len(config.transformers) == 4 else "AudioLDM 2"


def unet_notes(checkpoint: Checkpoint, config: Any, heads: Heads) -> list[str]:
    notes = [f"unet/: heads by level {config.num_heads}, {heads}"]
    if checkpoint.ema:
        notes.append(f"unet/: EMA weights, {checkpoint.ema} tensors")
    elif any(key.startswith("model_ema.") for key in checkpoint.tensors):
        notes.append("unet/: the last weights; the file has averaged ones too, which --ema takes")
    return notes


def find_tokenizers(source: str | Path, parts: Sequence[str]) -> Path:
    """The folder that holds the tokenizers `parts`, from the hub if it is not here."""
    path = Path(source)
    if not path.is_dir() and str(source).count("/") == 1 and not path.is_absolute():
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(source), allow_patterns=[f"{part}/*" for part in parts]))
        except Exception as error:
            raise UserError(f"--tokenizers {source}: the hub does not give it ({type(error).__name__})") from None
    for part in parts:
        if not (path / part).is_dir():
            raise UserError(f"--tokenizers {source}: has no {part}/; name a model folder of the same kind")
    return path


def install(staged: Path, folder: Path, report: ImportReport) -> None:
    """Moves the parts into the folder and names them in its model_index.json, beside those it had."""
    folder.mkdir(exist_ok=True)
    path = folder / "model_index.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    for part in report.written:
        (staged / part).rename(folder / part)
    ModelFolder(folder).write_index()
    named = json.loads(path.read_text())
    former = {part: cls for part, cls in before.items() if not part.startswith("_") and part not in report.written}
    path.write_text(json.dumps(named | former, indent=2) + "\n")


def class_and_size(content: Any) -> str:
    """A network's class and size."""
    if not isinstance(content, torch.nn.Module):
        return type(content).__name__
    return f"{type(content).__name__}, {sum(p.numel() for p in content.parameters()) / 1e6:,.2f} M parameters"
