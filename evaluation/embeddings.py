"""The models that listen: VGGish, PANNs, CLAP, EnCodec, PaSST, and a judge trained here.

A loader turns a checkpoint into a `Backend`; `BACKENDS` names the loaders. The libraries of the `eval` extra are
imported when a loader needs them, and never ask a model hub: what they would fetch is given to them from files.

Shapes: B waveforms, T samples, R rows of an embedding (frames; one where a model gives one), D size, K classes.
"""

import contextlib
import hashlib
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.original.checkpoint import read_checkpoint

Heard = tuple[Tensor, Tensor | None]  # embeddings (B, R, D), class logits (B, K) where the model is a tagger


@dataclass
class Backend:
    sample_rate: int  # Hz
    hear: Callable[[Tensor], Heard]  # waveforms (B, T)
    min_samples: int = 1  # the shortest waveform that it can hear
    embed_text: Callable[[list[str]], Tensor] | None = None  # captions => (N, D)
    weights: dict[str, str] = field(default_factory=dict)  # file name -> sha256


@dataclass
class Source:
    """Where a checkpoint comes from."""

    url: str | None = None  # of one file
    hub: str | None = None  # id of a folder on the Hugging Face hub
    files: tuple[str, ...] = ()  # of the folder; the first tells that it is there


LAION = "https://huggingface.co/lukewys/laion_clap/resolve/main/"
PANNS = "https://zenodo.org/record/3987831/files/"
CLAP_FILES = (
    "music_speech_audioset_epoch_15_esc_89.98.pt",
    "music_audioset_epoch_15_esc_90.14.pt",
    "music_speech_epoch_15_esc_89.25.pt",
    "630k-audioset-best.pt",
    "630k-audioset-fusion-best.pt",
    "630k-best.pt",
    "630k-fusion-best.pt",
)
SOURCES: dict[str, Source] = {
    "vggish-10086976.pth": Source(
        "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
    ),
    "Cnn14_mAP=0.431.pth": Source(PANNS + "Cnn14_mAP%3D0.431.pth"),
    "Cnn14_16k_mAP=0.438.pth": Source(PANNS + "Cnn14_16k_mAP%3D0.438.pth"),
    "passt-s-f128-p16-s10-ap.476-swa.pt": Source(
        "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt"
    ),
    "encodec_24khz": Source(hub="facebook/encodec_24khz", files=("config.json", "model.safetensors")),
    "roberta-base": Source(hub="FacebookAI/roberta-base", files=("tokenizer.json", "tokenizer_config.json")),
    "whisper-base": Source(
        hub="openai/whisper-base",
        files=(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    ),
    **{name: Source(LAION + name) for name in CLAP_FILES},
}


def find_weights(folder: Path, name: str, download: bool = False) -> Path:
    """The checkpoint <folder>/<name>, fetched there first where it is missing and `download` allows it."""
    path, source = folder / name, SOURCES.get(name, Source())
    if path.is_file() or (path.is_dir() and all((path / file).is_file() for file in source.files[:1])):
        return path
    origin = source.url or (source.hub and f"{', '.join(source.files)} of {source.hub}")
    if not download or not origin:
        raise UserError(
            f"{path}: not there; put {origin or 'the checkpoint'} there"
            + (", or add --download" if origin and not download else "")
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.url:
            torch.hub.download_url_to_file(source.url, str(path), progress=False)
        else:
            from huggingface_hub import snapshot_download

            snapshot_download(str(source.hub), local_dir=path, allow_patterns=list(source.files))
    except Exception as error:  # the network's errors have no common class
        raise UserError(f"{path}: cannot be downloaded ({error}); put {origin} there") from None
    return path


# What a backend needs in the weights folder beside its checkpoint.
COMPANIONS = {"clap": ("roberta-base",)}


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def digests(path: Path, names: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> sha256 of the file `path`, or of `names` in the folder `path`."""
    files = [path / name for name in names] if names else [path]
    return {str(file.relative_to(path.parent)): sha256_of(file) for file in files}


def read_weights(path: Path, anchor: str) -> dict[str, Tensor]:
    """A checkpoint's tensors by the names that follow the one that ends in `anchor`: wrappers such as {"state_dict": …}
    and prefixes such as "module." are taken off. No code of the file's is run."""
    tensors, _ = read_checkpoint(path)
    if not tensors:
        raise UserError(f"{path}: holds no weights; fetch it again")
    found = [key.removesuffix(anchor) for key in tensors if f".{key}".endswith(f".{anchor}")]
    prefix = min(found, key=len, default="")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def load_into(model: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).partition(": ")[2]
        raise UserError(f"{path}: not the weights of {type(model).__name__} ({reason[:200]})") from None


@contextlib.contextmanager
def without_hub(tokenizer: Any = None, text_encoder: Any = None) -> Iterator[None]:
    """laion_clap fetches tokenizers when imported and roberta-base's weights when built, and without a network
    transformers then hands it a tokenizer of five tokens: within, it is given these instead, in silence."""
    import transformers

    # BartTokenizer may be RobertaTokenizer under another name, so that one comes last.
    given = {"BertTokenizer": None, "BartTokenizer": None, "RobertaTokenizer": tokenizer, "RobertaModel": text_encoder}
    with contextlib.ExitStack() as stack:
        for name, thing in given.items():
            stack.enter_context(
                mock.patch.object(getattr(transformers, name), "from_pretrained", return_value=thing, create=True)
            )
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def import_library(name: str) -> ModuleType:
    """A module of the `eval` extra's libraries, imported without a word to a hub."""
    with without_hub():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name} cannot be imported ({error}); pip install 'audioldm2-pl[eval]'") from None


@contextlib.contextmanager
def without_init() -> Iterator[None]:
    """Models built within keep whatever was in memory: seconds saved where a checkpoint fills in every weight."""
    names = ("kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_", "trunc_normal_")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(torch.nn.init, name, lambda tensor, *_, **__: tensor))
        yield


def layout_of(device: str) -> torch.memory_format:
    """Of images in convolutions. On a CPU channels last: no layer's output has to be reordered for the next one."""
    return torch.channels_last if device == "cpu" else torch.preserve_format


def load_vggish(path: Path, device: str) -> Backend:
    from .vggish import EXAMPLE_SAMPLES, SAMPLE_RATE, VGGish

    with without_init():
        model = VGGish()
    load_into(model, read_weights(path, "features.0.weight"), path)
    model = model.eval().to(device).to(memory_format=layout_of(device))  # pyright: ignore[reportCallIssue]
    return Backend(SAMPLE_RATE, lambda x: (model(x.to(device)), None), EXAMPLE_SAMPLES, weights=digests(path))


def load_panns(path: Path, device: str) -> Backend:
    """CNN14 (Kong et al. 2020, arXiv:1912.10211) from frechet-audio-distance; its rate is in the file's name."""
    pann = import_library("frechet_audio_distance.models.pann")
    rate = 16_000 if "16k" in path.name else 32_000
    kind = pann.Cnn14_16k if rate == 16_000 else pann.Cnn14
    with without_init():
        model = kind(rate, rate * 32 // 1000, rate // 100, mel_bins=64, fmin=50, fmax=rate // 2, classes_num=527)
    load_into(model, read_weights(path, "bn0.weight"), path)
    model = model.eval().to(device).to(memory_format=layout_of(device))

    def hear(waveform: Tensor) -> Heard:
        embedding = model(waveform.to(device))["embedding"]
        return embedding.unsqueeze(1), model.fc_audioset(embedding)

    return Backend(rate, hear, min_samples=rate // 2, weights=digests(path))


def load_passt(path: Path, device: str) -> Backend:
    """PaSST (Koutini et al. 2022, arXiv:2110.05069) from hear21passt, at most 10 s; as deep as its checkpoint."""
    passt = import_library("hear21passt.models.passt")
    state = read_weights(path, "patch_embed.proj.weight")
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    with contextlib.redirect_stdout(io.StringIO()), without_init():
        mel = import_library("hear21passt.models.preprocess").AugmentMelSTFT(
            n_mels=128, sr=32_000, win_length=800, hopsize=320, n_fft=1024, fmin_aug_range=10, fmax_aug_range=2000
        )
        net = passt.PaSST(stride=10, img_size=(128, 998), depth=max(depth, 1), distilled=True)
        model = import_library("hear21passt.wrapper").PasstBasicWrapper(mel=mel, net=net, mode="all")
    load_into(net, state, path)
    model = model.eval().to(device)

    def hear(waveform: Tensor) -> Heard:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the shapes of its first call
            both = model(waveform.to(device))
        return both[:, None, 527:], both[:, :527]

    return Backend(32_000, hear, min_samples=16 * 320, weights=digests(path))  # a patch is 16 frames


def load_clap(path: Path, device: str) -> Backend:
    """LAION's CLAP (Wu et al. 2023, arXiv:2211.06687) from laion_clap, with the tokenizer in roberta-base/ beside it.

    Sizes are the checkpoint's. Clips over 10 s, which it cuts at random, are cut the same way every time.
    """
    import transformers

    from audioldm2_pl.conditioners.pretrained import load_pretrained

    state = read_weights(path, "text_branch.embeddings.word_embeddings.weight")
    state.pop("text_branch.embeddings.position_ids", None)  # older transformers stored it
    width = len(state.get("audio_branch.patch_embed.proj.weight", ()))
    sizes = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}
    if width not in sizes or "text_branch.embeddings.word_embeddings.weight" not in state:
        raise UserError(f"{path}: not a checkpoint of LAION's CLAP with HTSAT and RoBERTa")
    vocabulary = len(state["text_branch.embeddings.word_embeddings.weight"])
    depth = len({key.split(".")[3] for key in state if key.startswith("text_branch.encoder.layer.")})
    tokenizer_path = find_weights(path.parent, "roberta-base")
    tokenizer = load_pretrained(transformers.RobertaTokenizer, str(tokenizer_path))
    if len(tokenizer) != vocabulary:
        raise UserError(f"{tokenizer_path}: {len(tokenizer)} tokens, but {path.name} knows {vocabulary}")
    config = transformers.RobertaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=depth,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    laion_clap = import_library("laion_clap")
    fusion = any("fusion_model" in key for key in state)
    with without_init(), without_hub(tokenizer, transformers.RobertaModel(config)):
        module = laion_clap.CLAP_Module(enable_fusion=fusion, device=device, amodel=sizes[width])
    load_into(module.model, state, path)
    module = module.eval()

    def hear(waveform: Tensor) -> Heard:
        # The cut of a long clip must not depend on its batch.
        batches = waveform.split(1) if waveform.shape[1] > 480_000 else [waveform]
        embeddings = []
        for batch in batches:
            with numpy_seed(0):
                embeddings.append(module.get_audio_embedding_from_data(batch, use_tensor=True))
        return torch.cat(embeddings).unsqueeze(1), None

    weights = {**digests(path), **digests(tokenizer_path, ("tokenizer.json",))}
    return Backend(48_000, hear, embed_text=partial(module.get_text_embedding, use_tensor=True), weights=weights)


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """numpy's global random numbers from `seed`, and afterwards where they were."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def load_encodec(path: Path, device: str) -> Backend:
    """EnCodec (Défossez et al. 2022, arXiv:2210.13438), mono, from transformers: latents before quantisation."""
    import transformers

    from audioldm2_pl.conditioners.pretrained import load_pretrained

    model: Any = load_pretrained(transformers.EncodecModel, str(path))
    if model.config.audio_channels != 1:
        raise UserError(f"{path}: {model.config.audio_channels} channels; use encodec_24khz, which is mono")
    encoder = model.encoder.eval().to(device)

    def hear(waveform: Tensor) -> Heard:
        return encoder(waveform.to(device).unsqueeze(1)).transpose(1, 2), None  # (B, frames, D)

    weights = digests(path, ("config.json", "model.safetensors"))
    return Backend(model.config.sampling_rate, hear, weights=weights)


def load_judge(path: Path, device: str) -> Backend:
    """The tagger that `python -m evaluation report` trains: runs/<name>/report holds one."""
    from .judge import Judge

    files = ("judge.json", "judge.safetensors")
    if not all((path / file).is_file() for file in files):
        raise UserError(f"{path}: no judge here; python -m evaluation report EXPERIMENT.yaml trains one")
    judge = Judge.from_folder(path).to(device)
    size = judge.config.embedding_size

    def hear(waveform: Tensor) -> Heard:
        pooled = judge.pooled(judge.log_mel(waveform.to(device)))
        return pooled[:, None, :size], judge.classify(pooled)

    rate = judge.config.audio.sample_rate
    weights = digests(path, files)
    return Backend(rate, hear, min_samples=rate // 2, weights=weights)


BACKENDS: dict[str, Callable[[Path, str], Backend]] = {
    "vggish": load_vggish,
    "panns": load_panns,
    "passt": load_passt,
    "clap": load_clap,
    "encodec": load_encodec,
    "judge": load_judge,
}
