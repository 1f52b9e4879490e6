"""AudioLDM2: text to sound, one method an arrow of the paper's Figure 1.

Letters: B prompts, L vectors of LOA, D width, C × H × W latent, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2_pl import generation
from audioldm2_pl.audio import Fbank, LogMel, griffin_lim, limit_peak
from audioldm2_pl.candidates import best_of
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioning import check_finite, check_readable, encode_requests
from audioldm2_pl.editing import NO_EDIT, Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Editing, Generation, Sampling, check_sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model
from audioldm2_pl.models.adapters import load_adapter
from audioldm2_pl.models.audiomae import pooling_to
from audioldm2_pl.models.diffusion import Progress, draw_noise, part_of, sample
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.guidance import UNetInputs, predictor
from audioldm2_pl.models.unet import choose_heads
from audioldm2_pl.models.vae import latent_of, log_mel_of
from audioldm2_pl.models.vocoder import audio_of, vocode
from audioldm2_pl.recording import Recording, check_editable, edit_recording
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.transcripts import generate_apart, parts_of_all, same_length, speak_all
from audioldm2_pl.windows import generate_by_windows, lengths, needs_windows

VOCODERS = ("folder", "griffin-lim")  # what makes waveforms of log-mels
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}  # --precision
MAX_BATCH = 16  # samples that go through the T-UNet at once


class AudioLDM2:
    """A model folder, open for generation.

    >>> model = AudioLDM2.from_pretrained("runs/demo/model")
    >>> waveform = model.generate(["a bell rings"])  # (1, T) at model.sample_rate
    """

    def __init__(self, folder: ModelFolder, device: str | torch.device = "cpu", gpt2: bool = True,
                 dtype: torch.dtype = torch.float32):  # fmt: skip
        """`gpt2=False` opens a folder that has no GPT-2 yet; such a model makes sound of LOA that it is given.

        `dtype` is that of all networks but AudioMAE and what embeds sound or pictures; latents between steps and
        waveforms are float32.
        """
        self.device, self.dtype = torch.device(device), dtype
        self.unet, self.vae = self.prepare(folder.load("unet"), dtype), self.prepare(folder.load("vae"), dtype)
        self.loa_generator = None
        if gpt2 and self.uses_loa:
            generator = LOAGenerator(folder.load("language_model"), folder.load("projection_model"))
            self.loa_generator = self.prepare(generator, dtype)
        self.conditioners = {name: self.open_conditioner(folder, name) for name in self.condition_names}
        self.clap = self.conditioners.get("clap")  # it ranks candidates too
        if self.clap is None and folder.has_conditioner("clap"):
            self.clap = self.open_conditioner(folder, "clap")
        self.vocoder, self.by_griffin_lim = self.prepare(folder.load("vocoder"), dtype), False
        self.scheduler = folder.load("scheduler")  # only ever copied: two threads may generate at once
        self.sampling = folder.sampling()  # what `generate` takes where it is given nothing
        self.audio = audio_of(self.vae, self.vocoder, self.unet)
        self.sample_rate = self.audio.sample_rate
        self.log_mel = self.prepare(LogMel(self.audio))
        # The published folders have no AudioMAE: generation from text does without it.
        self.audiomae = self.prepare(folder.load("audiomae")) if folder.has("audiomae") else None
        self.fbank = self.prepare(Fbank(self.audio))
        self.adapters: dict[str, float] = {}  # path -> strength

    def open_conditioner(self, folder: ModelFolder, name: str) -> Any:
        conditioner: Any = self.prepare(folder.conditioner(name))
        getattr(conditioner, "text_model", conditioner).to(self.dtype)
        return conditioner

    def to(self, device: str | torch.device) -> AudioLDM2:
        """Moves all networks."""
        self.device = torch.device(device)
        for network in self.networks:
            network.to(self.device)
        return self

    @property
    def networks(self) -> list[nn.Module]:
        """All networks of the model, each once."""
        named = [self.unet, self.vae, self.vocoder, self.log_mel, self.fbank, self.loa_generator, self.audiomae]
        everything = [*named, self.clap, *self.conditioners.values()]
        return [network for network in dict.fromkeys(everything) if network is not None]

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device = "cpu", heads: str = "folder",
                        vocoder: str = "folder", dtype: torch.dtype = torch.float32,
                        adapters: Mapping[str, float] | None = None) -> AudioLDM2:  # fmt: skip
        """Opens a model folder or a hub id. Raises UserError where a part is missing.

        `heads="official"` gives the T-UNet 32 channels a head, as the authors trained it; the hub's folders say 8
        heads at every level, with a warning. `vocoder="griffin-lim"` finds the waveform without the network, by
        Griffin and Lim's algorithm: what a log-mel sounds like where the vocoder has not learnt enough. `dtype` is that
        of the networks: float32, bfloat16 or float16. `adapters` is path -> strength of each; see `load_adapter`.
        """
        if vocoder not in VOCODERS:
            raise UserError(f"--vocoder {vocoder}: choose one of {', '.join(VOCODERS)}")
        model = cls(ModelFolder(find_model(source)), device, dtype=dtype)
        model.by_griffin_lim = vocoder == "griffin-lim"
        choose_heads(model.unet, heads, source)
        for path, strength in (adapters or {}).items():
            model.load_adapter(path, strength)
        return model

    def load_adapter(self, path: str | Path, strength: float = 1.0) -> None:
        """Adds a LoRA adapter, or gives one that is loaded another strength, from 0 to 10; UserError if it cannot."""
        networks = [self.unet, *([] if self.loa_generator is None else [self.loa_generator.gpt2])]
        load_adapter(networks, self.adapters, path, strength)

    def prepare(self, network: Any, dtype: torch.dtype = torch.float32) -> Any:
        """A network for inference."""
        # not the network's own `to`: diffusers' prints a warning about a cast
        return nn.Module.to(network, self.device, dtype).eval().requires_grad_(False)

    def encode_conditions(
        self, prompts: Sequence[str], transcripts: Sequence[str] | None = None, media: Mapping[str, Any] | None = None
    ) -> dict[str, Condition]:
        """Prompts, transcripts and `read_media` => the condition (B, L, D) of each conditioner: "clap", "t5", ..."""
        inputs = {"text": list(prompts), "transcript": list(transcripts or [""] * len(prompts)), **(media or {})}
        return {name: c.encode(inputs).to(self.device, self.dtype) for name, c in self.conditioners.items()}

    def generate_loa(self, conditions: Mapping[str, Condition], loa_prefix: Tensor | None = None,
                     speaks: bool = False) -> Tensor:  # fmt: skip
        """Conditions => LOA (B, L, D) of sounds or of speech, after `loa_prefix` (B or 1, L', D) where there is one."""
        if self.loa_generator is None:
            raise UserError("this model has no GPT-2; give it LOA")
        read = [conditions[name] for name in self.loa_generator.conditions]
        if loa_prefix is not None:
            loa_prefix = loa_prefix.expand(len(read[0]), -1, -1)
        return self.loa_generator.generate(read, self.loa_generator.num_vectors(speaks), loa_prefix=loa_prefix)

    def sample_latent(self, inputs: UNetInputs, num_latent_frames: int, seeds: Sequence[int], sampling: Sampling,
                      edit: Edit = NO_EDIT, progress: Progress | None = None) -> Tensor:  # fmt: skip
        """What the T-UNet reads => latent (B, C, H, W). Sample i depends on row i and seeds[i] alone.

        Raises UserError where the latent is not finite.
        """
        shape = (self.unet.config.in_channels, num_latent_frames, self.num_latent_bins)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = draw_noise(shape, generators).to(self.device)  # (B, C, H, W)
        predict = predictor(self.unet, inputs, sampling.guidance_scale)
        latent = sample(predict, self.scheduler, noise, generators, sampling, edit.to(self.device), progress)
        cause = (
            f"guidance_scale={sampling.guidance_scale}, num_steps={sampling.num_steps}, eta={sampling.eta} or damaged"
        )
        check_finite(latent, "the latent", f"{cause} weights in unet/ made it so; take a lower guidance_scale first")
        return latent

    def decode_mel(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) => log-mel (B, 1, F, M)."""
        return log_mel_of(self.vae, latent.to(self.dtype))

    def vocode(self, log_mel: Tensor) -> Tensor:
        """Log-mel (B, 1, F, M) => waveform (B, F · hop), of any peak."""
        if not self.by_griffin_lim:
            return vocode(self.vocoder, log_mel.to(self.dtype))
        return griffin_lim(log_mel, self.audio)

    @torch.inference_mode()
    def generate(self, requests: str | Generation | Sequence[str | Generation], *, sampling: Sampling | None = None,
                 loa: Tensor | None = None, edit: Edit = NO_EDIT, progress: Progress | None = None,
                 **values: Any) -> Tensor:  # fmt: skip
        """Prompts or requests => waveforms (B, T) in float32 on the CPU.

        `values` are fields of Generation and Sampling that hold for all requests, such as `seconds=5, num_steps=50`; of
        Generation's also a list, one for each. One `seed` counts up. `sampling` is as the model was measured where it
        is not given. Of several `candidates` per prompt the one is returned that CLAP finds nearest to it. `loa`
        (B, L, D) replaces GPT-2's. `edit` keeps some of a source. `progress` is called with (step, number of steps).
        Sounds longer than `window_seconds` are made by windows, as are those whose prompt changes (`prompt_at`), and
        long transcripts part by part; shorter waveforms of a batch end in zeros. Warns of what is not read of a text.
        Raises UserError on bad settings and a waveform that is not finite.
        """
        given = {name: value for name, value in values.items() if value is not None}
        asked, how = generation.by_name(given, Generation, Sampling)
        clips = generation.requests_of(requests, asked, empty_prompts=not self.needs_prompt)
        sampling = replace(sampling or self.sampling, **how)
        check_sampling(sampling, self.scheduler.config)
        if loa is None and len(groups := same_length(self, clips)) > 1:
            return generate_apart(self, clips, groups, sampling, edit, progress)
        one_window = loa is not None or edit is not NO_EDIT
        parts = [[clip] for clip in clips] if one_window else parts_of_all(self, clips, sampling)
        check_readable(self, [request for of_clip in parts for request in of_clip], loa, edit)
        if max(map(len, parts)) > 1:
            return limit_peak(speak_all(self, parts, sampling, progress), self.sample_rate)
        num_latent_frames, num_samples = lengths(self, clips, edit)
        by_windows = needs_windows(self, clips, sampling, num_latent_frames)
        if by_windows and one_window:
            raise UserError("loa and edit are for sounds of one window; leave them out, or ask for a shorter sound")
        size = max(1, MAX_BATCH // sampling.candidates)  # prompts whose candidates make one batch
        starts = range(0, len(clips), size)
        made = []
        for number, start in enumerate(starts):
            rows, part = slice(start, start + size), part_of(progress, number, len(starts))
            if by_windows:
                waveform = generate_by_windows(self, clips[rows], sampling, num_latent_frames, part)
            else:
                given_loa = None if loa is None else loa[rows]
                waveform = self.render(clips[rows], sampling, edit.rows(rows), given_loa, part)[1]
            made.append(waveform[:, :num_samples])
        return limit_peak(torch.cat(made), self.sample_rate)

    @torch.inference_mode()
    def edit(
        self, source: str | Path | Tensor, request: str | Generation = "", *, sample_rate: int | None = None,
        sampling: Sampling | None = None, progress: Progress | None = None, **values: Any,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """A file, or waveform (T,) or (channels, T) at `sample_rate` Hz => the edited waveform and its rate.

        `values` are fields of Editing, Generation and Sampling, such as `between=[(4, 6)], num_steps=50`. Raises
        UserError as `generate`, and for an edit that the source or the model does not allow.
        """
        given = {name: value for name, value in values.items() if value is not None}
        asked, how, changes = generation.by_name(given, Generation, Sampling, Editing)
        editing, sampling = Editing(**changes), replace(sampling or self.sampling, **how)
        editing.check()
        check_sampling(sampling, self.scheduler.config)
        empty = not self.needs_prompt or editing.vary is not None or editing.restyle is None
        [clip] = generation.requests_of(request, asked, empty_prompts=empty)
        check_editable(self, clip, editing)
        if isinstance(source, Tensor):
            recording = Recording(source, sample_rate or self.sample_rate)
        else:
            recording = Recording.load(source)
        edited = edit_recording(self, recording, clip, editing, sampling, progress)
        return edited.waveform, edited.sample_rate

    def render(self, requests: Sequence[Generation], sampling: Sampling, edit: Edit = NO_EDIT,
               loa: Tensor | None = None, progress: Progress | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Requests => latents (B, C, H, W) and waveforms (B, T) of the best candidates, on the CPU."""
        latent = self.generate_latent(requests, sampling, edit, loa, progress)
        waveform = torch.cat([self.vocode(self.decode_mel(part)).float().cpu() for part in latent.split(MAX_BATCH)])
        chosen = best_of(self, waveform, requests)
        return latent.cpu()[chosen], waveform[chosen]

    def generate_latent(self, requests: Sequence[Generation], sampling: Sampling, edit: Edit = NO_EDIT,
                        loa: Tensor | None = None, progress: Progress | None = None) -> Tensor:  # fmt: skip
        """Requests => latents (B · candidates, C, H, W), a prompt's candidates one after another.

        GPT-2 runs once a prompt, the T-UNet on up to MAX_BATCH samples at once. `loa` (B, L, D) replaces GPT-2's.
        """
        inputs = encode_requests(self, requests, sampling, edit, loa)
        num_latent_frames, count = lengths(self, requests, edit)[0], sampling.candidates
        seeds = [r.seed if j == 0 else seed_of(r.seed, j) for r in requests for j in range(count)]
        rows = torch.arange(len(requests)).repeat_interleave(count)  # (B · candidates,)
        chunks, latents = rows.split(MAX_BATCH), []
        for number, chunk in enumerate(chunks):
            latents.append(self.sample_latent(
                inputs.rows(chunk.to(self.device)), num_latent_frames, seeds[number * MAX_BATCH :][: len(chunk)],
                sampling, edit.rows(chunk), part_of(progress, number, len(chunks)),
            ))  # fmt: skip
        return torch.cat(latents)

    @torch.inference_mode()
    def reconstruct(self, waveform: Tensor) -> Tensor:
        """Waveform (B, T) through VAE and vocoder and back, (B, T)."""
        padded = nn.functional.pad(waveform, (0, -waveform.shape[1] % self.unit))
        made = self.vocode(self.decode_mel(self.encode_latent(padded)))[:, : waveform.shape[1]]
        return limit_peak(made.float().cpu(), self.sample_rate)

    def encode_latent(self, waveform: Tensor, sample: bool = False) -> Tensor:
        """Waveforms (B, H · unit) => the VAE's latent (B, C, H, W): its mode, or a draw from the posterior."""
        return latent_of(self.vae, self.log_mel(waveform.to(self.device)).to(self.dtype), sample=sample)

    @torch.inference_mode()
    def loa_of(self, waveform: Tensor, speaks: bool = False) -> Tensor:
        """AudioMAE's LOA (B, L, D) of whole clips (B, T), or of speech. UserError for a model without AudioMAE."""
        if self.audiomae is None:
            raise UserError("this model folder has no audiomae/; LOA of sound needs it")
        return self.audiomae.loa(self.fbank(waveform.to(self.device)), self.pooling(speaks))

    def pooling(self, speaks: bool) -> int:
        """λ of the LOA that GPT-2 generates of sounds or of speech, else AudioMAE's own."""
        gpt2 = self.loa_generator
        return pooling_to(self.audiomae.config, gpt2 and gpt2.num_vectors(speaks))  # type: ignore[union-attr]

    @torch.inference_mode()
    def similarity(self, waveform: Tensor, text: str) -> Tensor:
        """Cosine of CLAP's embeddings of waveforms (B, T) and one text, (B,). UserError for a model without CLAP."""
        if self.clap is None:
            raise UserError("this model folder has no CLAP in text_encoder/, which candidates are ranked by")
        sound = self.clap.encode_audio(waveform.to(self.device), self.sample_rate).embedding[:, 0]
        return (sound @ self.clap.encode_text([text]).embedding[0, 0].float()).cpu()

    @property
    def uses_loa(self) -> bool:
        """Whether the T-UNet reads the language of audio."""
        return "loa" in self.unet.config.conditions

    @property
    def condition_names(self) -> list[str]:
        """Conditioners that T-UNet or GPT-2 reads."""
        config = self.unet.config
        read = [*([] if self.loa_generator is None else self.loa_generator.conditions), *config.conditions, config.film]
        return [name for name in dict.fromkeys(read) if name not in ("loa", None)]

    @property
    def needs_prompt(self) -> bool:
        """Whether a prompt may not be empty; of speech it may, as the captions of speech corpora are."""
        return not self.needs_transcript and any(
            conditioner.reads == "text" for conditioner in self.conditioners.values()
        )

    @property
    def reads_transcripts(self) -> bool:
        """Whether it speaks what a request's transcript says."""
        return any(conditioner.reads == "transcript" for conditioner in self.conditioners.values())

    @property
    def needs_transcript(self) -> bool:
        """Whether it does nothing else: no T5 tells it of other sounds."""
        return self.reads_transcripts and "t5" not in self.conditioners

    @property
    def downsampling(self) -> int:
        """Frames to one latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def unit(self) -> int:
        """Samples to one latent frame."""
        return self.audio.hop_length * self.downsampling

    @property
    def num_latent_bins(self) -> int:
        """W of a latent (B, C, H, W)."""
        return self.audio.num_mel_bins // self.downsampling

    @property
    def smallest_latent(self) -> int:
        """Frames of the shortest latent: the T-UNet halves it once a level."""
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def continues_loa(self) -> bool:
        """Whether GPT-2 can continue the LOA of a context; the published folders have no AudioMAE for it."""
        return self.uses_loa and self.audiomae is not None and self.loa_generator is not None
