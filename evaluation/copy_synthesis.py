"""Copy synthesis: recordings => their log-mels => waveforms, the most that any model with this vocoder can reach."""

from fnmatch import fnmatch
from math import ceil
from pathlib import Path

import torch

from audioldm2_pl.audio import AudioConfig, LogMel, griffin_lim, limit_peak, load_waveform, prepare_clip, save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model
from audioldm2_pl.models.vocoder import front_end_of, vocode

from .folders import clip_files


@torch.no_grad()
def copy_synthesis(
    model: str, sounds: Path, output: Path, match: str = "*", by_griffin_lim: bool = False
) -> list[Path]:
    """Writes OUTPUT/name.wav of every recording below `sounds` whose name matches; returns the files.

    Recordings take the level that training gives them. `model` is a folder or a hub id; its vocoder/ is enough.
    Raises UserError where there is no such recording or vocoder.
    """
    vocoder = ModelFolder(find_model(model)).load("vocoder").eval()
    audio = AudioConfig(**front_end_of(vocoder))
    log_mel_of = LogMel(audio)
    files = {name: path for name, path in clip_files(sounds).items() if fnmatch(path.name, match)}
    if not files:
        raise UserError(f"{sounds}: holds no audio whose name matches {match!r}")
    written = []
    for name, path in files.items():
        waveform = load_waveform(path, audio.sample_rate)  # (T,)
        whole = ceil(len(waveform) / audio.hop_length) * audio.hop_length
        prepared = torch.from_numpy(prepare_clip(waveform, audio.sample_rate, audio, max(whole, audio.num_fft)))
        log_mel = log_mel_of(prepared[None])  # (1, 1, F, M)
        made = griffin_lim(log_mel, audio) if by_griffin_lim else vocode(vocoder, log_mel)
        made = limit_peak(made, audio.sample_rate)
        copy = output / f"{name}.wav"
        save_waveform(copy, made[0, : len(waveform)], audio.sample_rate)
        written.append(copy)
    return written
