"""Copy synthesis: recordings => their log-mels => waveforms, the most that any model with this vocoder can reach."""

from math import ceil
from pathlib import Path

import torch

from audioldm2_pl.audio import AudioConfig, LogMel, griffin_lim, load_waveform, prepare_clip, save_waveform
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model
from audioldm2_pl.models.vocoder import front_end_of, vocode

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


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
    files = [path for path in sorted(sounds.rglob(match)) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"{sounds}: no {', '.join(SUFFIXES)} in it whose name matches {match!r}")
    written = []
    for path in files:
        waveform = load_waveform(path, audio.sample_rate)  # (T,)
        whole = ceil(len(waveform) / audio.hop_length) * audio.hop_length
        prepared = torch.from_numpy(prepare_clip(waveform, audio.sample_rate, audio, max(whole, audio.num_fft)))
        log_mel = log_mel_of(prepared[None])  # (1, 1, F, M)
        made = griffin_lim(log_mel, audio) if by_griffin_lim else vocode(vocoder, log_mel)
        name = output / path.relative_to(sounds).with_suffix(".wav")
        save_waveform(name, made[0, : len(waveform)], audio.sample_rate)
        written.append(name)
    return written
