"""Lengths of the clips and crops that a stage reads, and which of them it can be trained with."""

from typing import Any

from audioldm2_pl.errors import UserError


def frames_read(stage: Any, experiment: Any) -> int:
    """Frames of the clips or crops that a stage of an ExperimentConfig reads."""
    audio, seconds = experiment.audio, experiment.training_of(stage.name).read_seconds
    return audio.num_frames if seconds is None else round(seconds * audio.sample_rate) // audio.hop_length


def check_lengths(stage: Any, experiment: Any) -> None:
    """UserError where AudioMAE, the VAE or a Fourier transform cannot read what a stage reads."""
    audio, seconds = experiment.audio, experiment.training_of(stage.name).read_seconds
    num_frames, reads = frames_read(stage, experiment), stage.reads(experiment)
    key = f"audio.clip_seconds={audio.clip_seconds}"
    if seconds is not None:
        key = f"training.{stage.name}.crop_seconds={seconds}"
    if (stage.needs_whole_clips or "audiomae" in reads) and num_frames != audio.num_frames:
        raise UserError(f"{key}: AudioMAE reads whole clips of {audio.clip_seconds} s; set it to null")
    if "vae" in (*reads, stage.makes) and num_frames % experiment.vae.downsampling:
        raise UserError(
            f"{key} is {num_frames} frames, which the VAE's downsampling of {experiment.vae.downsampling} does not "
            "divide; choose another length"
        )
    if 2 * num_frames * audio.hop_length <= audio.num_fft:
        raise UserError(f"{key} is too short for audio.num_fft={audio.num_fft}; choose another length")
