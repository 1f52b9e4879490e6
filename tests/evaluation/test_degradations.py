"""On real audio, more damage has to score worse: real clips under noise, low-pass and coarse quantisation."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from scipy.signal import butter, sosfilt

from audioldm2_pl.audio import AudioConfig, LogMel, fit_length, load_waveform
from evaluation.features import encode_files
from evaluation.folders import clip_files
from evaluation.metrics.embeddings.classifier import load_classifier
from evaluation.metrics.fad import distance_of_rows
from evaluation.metrics.kl import kl_of_logits
from evaluation.metrics.metric import Outputs
from evaluation.protocols import ModelSettings
from evaluation.sound_classifier import SoundClassifier, SoundClassifierConfig

AUDIO = AudioConfig(clip_seconds=2.4)


def bits(waveform: np.ndarray, number: int) -> np.ndarray:
    steps = 2 ** (number - 1) - 1
    return np.round(waveform * steps) / steps


def low_pass(waveform: np.ndarray, hz: int) -> np.ndarray:
    return sosfilt(butter(8, hz, fs=AUDIO.sample_rate, output="sos"), waveform)


def noise(waveform: np.ndarray, snr_db: int) -> np.ndarray:
    level = np.sqrt(np.square(waveform).mean()) * 10 ** (-snr_db / 20)
    return waveform + level * np.random.default_rng(0).normal(size=len(waveform))


DAMAGES = {"noise": (noise, (40, 20, 0)), "low-pass": (low_pass, (6000, 2000, 500)), "bits": (bits, (8, 6, 4))}


@pytest.fixture(scope="module")
def clips(real_data) -> dict[str, list[np.ndarray]]:
    """Class -> the first 2.4 s of ten ESC-10 clips"""
    return {
        folder.name: [
            fit_length(load_waveform(path, AUDIO.sample_rate), AUDIO.num_samples)
            for path in sorted(folder.iterdir())[:10]
        ]
        for folder in sorted((real_data / "esc10" / "audio").iterdir())
    }


@pytest.fixture(scope="module")
def tagger(clips, tmp_path_factory) -> Path:
    """A small classifier of the ten classes, trained on six clips of each without distortions."""
    waveforms = np.stack([waveform for group in clips.values() for waveform in group[:6]])
    log_mel = LogMel(AUDIO)(torch.from_numpy(waveforms))  # (60, 1, F, M)
    labels = torch.arange(len(clips)).repeat_interleave(6)
    torch.manual_seed(0)
    classifier = SoundClassifier(
        SoundClassifierConfig(AUDIO, classes=list(clips), channels=[8, 16, 32], embedding_size=16)
    ).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3)
    for _ in range(80):
        rows = torch.randperm(len(labels))[:24]
        begin = int(torch.randint(AUDIO.num_frames // 2, ()))
        loss = F.cross_entropy(classifier(log_mel[rows, :, begin : begin + AUDIO.num_frames // 2]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("tagger")
    classifier.save(folder)
    return folder


@pytest.fixture(scope="module")
def encode(clips, tagger, tmp_path_factory):
    """What the classifier makes of windows of 0.6 s of the other clips, written to files after `damage`."""
    settings = ModelSettings("classifier", "tagger")
    settings.audio.window_seconds = 0.6
    embedder = load_classifier(tagger, "cpu")

    def run(damage=None, *setting) -> Outputs:
        folder = tmp_path_factory.mktemp("clips")
        for name, group in clips.items():
            for number, waveform in enumerate(group[6:]):
                damaged = damage(waveform, *setting) if damage else waveform
                soundfile.write(folder / f"{name}_{number}.wav", damaged, AUDIO.sample_rate, subtype="FLOAT")
        return encode_files(list(clip_files(folder).values()), settings, embedder, batch_size=32)

    return run


@pytest.fixture(scope="module")
def reference(encode) -> Outputs:
    return encode()


@pytest.mark.parametrize("name", DAMAGES)
def test_scores_grow_with_the_damage(encode, reference, name):
    damage, settings = DAMAGES[name]
    scores = [(0.0, 0.0, 0.0)]
    for setting in settings:
        found = encode(damage, setting)
        scores.append(
            (
                distance_of_rows(reference.embeddings.rows, found.embeddings.rows),
                distance_of_rows(reference.embeddings.clip_means(), found.embeddings.clip_means()),
                kl_of_logits(reference.logits.clip_means(), found.logits.clip_means()).mean(),
            )
        )
    for kind, values in zip(("FAD", "Fréchet distance of clips", "KL"), np.array(scores).T):
        assert (np.diff(values) > 0).all(), (kind, values)


def test_tagger_knows_clips_that_it_never_met(clips, reference):
    """Chance is 0.1: the scores above are those of a model that tells the sounds apart."""
    truth = np.repeat(np.arange(len(clips)), 4)
    assert (reference.logits.clip_means().argmax(axis=1) == truth).mean() > 0.25
