"""PANNs' CNN14 as the package frechet-audio-distance builds it: for the very embeddings that it measures."""

from pathlib import Path
from types import ModuleType

from torch import Tensor

from ...checkpoints import SkipInit, digests, load_into, read_state
from ...libraries import import_library
from .backend import Backend, Embedder, Encoded, on_device
from .laion_clap import import_laion_clap
from .panns import NUM_CLASSES, NUM_MEL_BINS, SOURCES

NETWORKS = {"_8k": ("Cnn14_8k", 8_000), "_16k": ("Cnn14_16k", 16_000), "": ("Cnn14", 32_000)}  # by the file's name


def import_frechet_audio_distance(module: str = "") -> ModuleType:
    """The package, or one of its modules; it imports laion_clap."""
    import_laion_clap()
    return import_library("frechet_audio_distance" + module)


def load_frechet_audio_distance(path: Path, device: str) -> Embedder:
    name, rate = next(found for mark, found in NETWORKS.items() if mark in path.name)
    network = getattr(import_frechet_audio_distance(".models.pann"), name)
    sizes = {"mel_bins": NUM_MEL_BINS, "fmin": 50, "fmax": rate // 2, "classes_num": NUM_CLASSES}
    with SkipInit():
        model = network(rate, rate * 32 // 1000, rate // 100, **sizes)
    load_into(model, read_state(path, "bn0.weight"), path)
    model = on_device(model, device)

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), and logits (B, K) where there are some
        embedding = model(waveform.to(device))["embedding"]
        return embedding.unsqueeze(1), model.fc_audioset(embedding)

    return Embedder(rate, encode, min_samples=rate // 2, weights=digests(path))


BACKEND = Backend(load=load_frechet_audio_distance, gives=frozenset({"embeddings", "logits"}), sources=SOURCES)
