"""On real audio, more damage has to score worse: real clips under noise, low-pass and coarse quantisation."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from scipy.signal import butter, sosfilt

from audioldm2_pl.audio import AudioConfig, LogMel, fit_length, load_waveform
from evaluation.embeddings import load_judge
from evaluation.fad import distance_of_rows
from evaluation.folders import audio_files
from evaluation.hearing import Heard, listen
from evaluation.judge import Judge, JudgeConfig
from evaluation.kl import kl_of_logits
from evaluation.protocols import ModelSettings
from evaluation.score import mean_of_clips

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
    """A small judge that learnt the ten classes from six clips of each; not under distortions, as the demo's does."""
    waveforms = np.stack([waveform for group in clips.values() for waveform in group[:6]])
    log_mel = LogMel(AUDIO)(torch.from_numpy(waveforms))  # (60, 1, F, M)
    labels = torch.arange(len(clips)).repeat_interleave(6)
    torch.manual_seed(0)
    judge = Judge(JudgeConfig(AUDIO, classes=list(clips), channels=[8, 16, 32], embedding_size=16)).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    for _ in range(80):
        rows = torch.randperm(len(labels))[:24]
        begin = int(torch.randint(AUDIO.num_frames // 2, ()))
        loss = F.cross_entropy(judge(log_mel[rows, :, begin : begin + AUDIO.num_frames // 2]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("tagger")
    judge.save(folder)
    return folder


@pytest.fixture(scope="module")
def hear(clips, tagger, tmp_path_factory):
    """What the tagger hears in windows of 0.6 s of the other clips, written to files after `damage`."""
    settings = ModelSettings("judge", "tagger")
    settings.audio.window_seconds = 0.6
    backend = load_judge(tagger, "cpu")

    def run(damage=None, *setting) -> Heard:
        folder = tmp_path_factory.mktemp("clips")
        for name, group in clips.items():
            for number, waveform in enumerate(group[6:]):
                damaged = damage(waveform, *setting) if damage else waveform
                soundfile.write(folder / f"{name}_{number}.wav", damaged, AUDIO.sample_rate, subtype="FLOAT")
        return listen(list(audio_files(folder).values()), settings, backend, batch_size=32)

    return run


@pytest.fixture(scope="module")
def reference(hear) -> Heard:
    return hear()


@pytest.mark.parametrize("name", DAMAGES)
def test_scores_grow_with_the_damage(hear, reference, name):
    damage, settings = DAMAGES[name]
    scores = [(0.0, 0.0, 0.0)]
    for setting in settings:
        heard = hear(damage, setting)
        scores.append(
            (
                distance_of_rows(reference.embeddings.rows, heard.embeddings.rows),
                distance_of_rows(mean_of_clips(reference.embeddings), mean_of_clips(heard.embeddings)),
                kl_of_logits(mean_of_clips(reference.logits), mean_of_clips(heard.logits)).mean(),
            )
        )
    for kind, values in zip(("FAD", "Fréchet distance of clips", "KL"), np.array(scores).T):
        assert (np.diff(values) > 0).all(), (kind, values)


def test_tagger_knows_clips_that_it_never_met(clips, reference):
    """Chance is 0.1: the scores above are those of a model that tells the sounds apart."""
    truth = np.repeat(np.arange(len(clips)), 4)
    assert (mean_of_clips(reference.logits).argmax(axis=1) == truth).mean() > 0.25
