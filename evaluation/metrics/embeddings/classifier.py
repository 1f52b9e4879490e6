"""The sound classifier that `python -m evaluation report` trains: runs/<name>/report holds one."""

from pathlib import Path

from torch import Tensor

from audioldm2_pl.errors import UserError

from ...checkpoints import digests
from ...sound_classifier import FILES, SoundClassifier
from .backend import Backend, Embedder, Encoded


def load_classifier(path: Path, device: str) -> Embedder:
    if not all((path / file).is_file() for file in FILES):
        raise UserError(f"{path}: no sound classifier here; python -m evaluation report EXPERIMENT.yaml trains one")
    model = SoundClassifier.from_folder(path).to(device)
    config = model.config

    def encode(waveform: Tensor) -> Encoded:  # (B, T) => (B, R, D), and logits (B, K) where there are some
        pooled = model.pooled(model.log_mel(waveform.to(device)))
        return pooled[:, None, : config.embedding_size], model.classify(pooled)

    rate = config.audio.sample_rate
    return Embedder(rate, encode, min_samples=rate // 2, classes=config.classes, weights=digests(path, FILES))


BACKEND = Backend(load=load_classifier, gives=frozenset({"embeddings", "logits", "classes"}))
