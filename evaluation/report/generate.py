"""Every call of the model under test: how a test clip or its prompt becomes audio, LOA or a latent.

real              the test clip itself
reconstruction    its log-mel through VAE and vocoder: the ceiling of every generation
loa_to_audio      T-UNet, VAE and vocoder, given AudioMAE's LOA of the clip: as if GPT-2 were perfect
text_to_audio     the whole system, given the caption alone

Shapes: B clips, T samples, L vectors of LOA, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from audioldm2_pl.config import ExperimentConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Editing, Generation
from audioldm2_pl.models.vae import latent_of
from audioldm2_pl.recording import edit_waveforms
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.transcripts import transcript_for

from ..clips import LabelledClip

SYSTEM_NAMES = {
    "real": "Reference",
    "reconstruction": "VAE + vocoder",
    "loa_to_audio": "From AudioMAE's LOA",
    "text_to_audio": "From text",
    "shuffled_captions": "From text, captions shuffled",
}
SYSTEMS = ("real", "reconstruction", "loa_to_audio", "text_to_audio")
CONTEXT_SHARE = 0.25  # of a clip that a continuation is given: the paper's 2.5 of 10 seconds

System = Callable[[Sequence[LabelledClip], Tensor], Tensor]  # clips, their waveforms (B, T) => waveforms (B, T)


def load_pipeline(model_folder: Path, device: str) -> Any:
    from audioldm2_pl.pipeline import AudioLDM2

    return AudioLDM2.from_pretrained(model_folder, device=device)


class Generator:
    """A model with an experiment's sampling and seed. Every clip has a seed of its own: its audio does not depend on
    which clips share its batch."""

    def __init__(self, model: Any, experiment: ExperimentConfig):
        self.model, self.seed, self.sampling = model, experiment.seed, experiment.sampling

    def from_text(self, clips: Sequence[LabelledClip], **changes: Any) -> Tensor:
        """Audio (B, T) for the clips' captions; `changes`: `loa` (B, L, D) in GPT-2's place, `edit`, or sampling."""
        settings = {"seconds": len(clips[0].waveform) / self.model.sample_rate, **changes}
        return self.model.generate(self.requests(clips), sampling=self.sampling, **settings)

    def edited(
        self, clips: Sequence[LabelledClip], waveform: Tensor, editing: Editing, prompts: Sequence[str]
    ) -> Tensor:
        """Waveforms (B, T) edited under one prompt each, (B, T'), before anything of them is pasted back."""
        requests = [replace(request, prompt=prompt) for request, prompt in zip(self.requests(clips), prompts)]
        return edit_waveforms(self.model, waveform, requests, editing, self.sampling)

    def requests(self, clips: Sequence[LabelledClip]) -> list[Generation]:
        """What is asked for: the clips' captions, and of speech their transcripts."""
        return [
            Generation(
                clip.text,
                transcript=transcript_for(self.model, clip.transcript),
                seed=seed_of(self.seed, "report", clip.key),
            )
            for clip in clips
        ]

    def loa_of(self, clips: Sequence[LabelledClip], waveform: Tensor) -> Tensor:
        """AudioMAE's LOA (B, L, D) of clips (B, T), of speech where all of them have transcripts."""
        return self.model.loa_of(waveform, self.model.reads_transcripts and all(clip.transcript for clip in clips))

    def systems(self) -> dict[str, System]:
        return {
            "real": lambda clips, waveform: waveform,
            "reconstruction": lambda clips, waveform: self.model.reconstruct(waveform),
            "loa_to_audio": lambda clips, waveform: self.from_text(clips, loa=self.loa_of(clips, waveform)),
            "text_to_audio": lambda clips, waveform: self.from_text(clips),
        }

    def require_audiomae(self, figure: str) -> None:
        """UserError where the model cannot read LOA off real clips."""
        if self.model.audiomae is None:
            raise UserError(f"the model has no audiomae/; the figure {figure} needs it")

    @torch.inference_mode()
    def loa_at(self, waveform: Tensor, pooling: int) -> Tensor:
        """Waveforms (B, T) => LOA pooled by λ (B, L, D)"""
        return self.model.audiomae.loa(self.model.fbank(waveform.to(self.model.device)), pooling)

    @torch.inference_mode()
    def latents(self, waveform: Tensor) -> dict[str, Tensor]:
        """Waveforms (B, T) => space -> (B, D): AudioMAE's features over all patches, the VAE's latent over time"""
        model, waveform = self.model, waveform.to(self.model.device)
        unit = model.audio.hop_length * model.downsampling
        log_mel = model.log_mel(F.pad(waveform, (0, -waveform.shape[1] % unit)))
        return {
            "AudioMAE": model.audiomae.features(model.fbank(waveform)).mean(dim=(1, 2)),
            "VAE": latent_of(model.vae, log_mel, sample=False).mean(dim=2).flatten(1),
        }

    def continued(self, clips: Sequence[LabelledClip], context: Tensor, num_samples: int) -> Tensor:
        """What follows a context (B, T') of clips up to `num_samples`, (B, T - T'): its latent is kept, its LOA and the
        caption continued."""
        editing = Editing(extend=(num_samples - context.shape[1]) / self.model.sample_rate)
        whole = edit_waveforms(self.model, context, self.requests(clips), editing, self.sampling)
        return whole[:, context.shape[1] : num_samples]
