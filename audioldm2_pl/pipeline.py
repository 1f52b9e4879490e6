"""AudioLDM2: text to sound, one method an arrow of the paper's Figure 1.

Letters: B prompts, L vectors of LOA, D width, C × H × W latent, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audioldm2_pl import generation
from audioldm2_pl.audio import Fbank, LogMel, griffin_lim
from audioldm2_pl.conditioners.condition import Condition, warn_unread
from audioldm2_pl.editing import NO_EDIT, Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling, check_sampling, check_transcripts
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.hub.parts import find_model
from audioldm2_pl.models.adapters import load_adapter
from audioldm2_pl.models.diffusion import Progress, draw_noise, part_of, sample
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.guidance import UNetInputs, predictor
from audioldm2_pl.models.unet import choose_heads
from audioldm2_pl.models.vae import latent_of, log_mel_of
from audioldm2_pl.models.vocoder import audio_of, vocode
from audioldm2_pl.seeds import seed_of

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

        `dtype` is that of all networks but CLAP's audio encoder and AudioMAE; latents between steps and waveforms are
        float32.
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
        if name != "clap":
            return conditioner.to(self.dtype)
        conditioner.text_model.to(self.dtype)
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
        self, prompts: Sequence[str], transcripts: Sequence[str] | None = None
    ) -> dict[str, Condition]:
        """Prompts and transcripts => the condition (B, L, D) of each conditioner: "clap", "t5", "phonemes"."""
        inputs = {"text": list(prompts), "transcript": list(transcripts or [""] * len(prompts))}
        return {name: conditioner.encode(inputs) for name, conditioner in self.conditioners.items()}

    def generate_loa(self, conditions: Mapping[str, Condition], loa_prefix: Tensor | None = None) -> Tensor:
        """Conditions => LOA (B, L, D) that GPT-2 generates, after `loa_prefix` (B or 1, L', D) where there is one."""
        if self.loa_generator is None:
            raise UserError("this model has no GPT-2; give it LOA")
        read = [conditions[name] for name in self.loa_generator.conditions]
        if loa_prefix is not None:
            loa_prefix = loa_prefix.expand(len(read[0]), -1, -1)
        return self.loa_generator.generate(read, loa_prefix=loa_prefix)

    def unet_inputs(self, conditions: Mapping[str, Condition]) -> UNetInputs:
        """Named conditions (B, L, D) => those that the T-UNet reads, in its order."""
        config = self.unet.config
        film = None if config.film is None else conditions[config.film].embedding[:, 0]  # (B, D)
        return UNetInputs([conditions[name] for name in config.conditions], film)

    def guided_inputs(
        self, conditions: Mapping[str, Condition], negative_prompts: Sequence[str], sampling: Sampling
    ) -> UNetInputs:
        """Named conditions (B, L, D), LOA among them, as the T-UNet reads them, and what guidance is against.

        That is each negative prompt and zero LOA, as in training's condition dropout, or with `unconditional="gpt2"`
        the LOA that GPT-2 generates for the negative prompt, as in diffusers.
        """
        inputs = self.unet_inputs(conditions)
        if sampling.guidance_scale != 1.0:
            negatives = list(negative_prompts if len(set(negative_prompts)) > 1 else negative_prompts[:1])
            without = self.encode_conditions(negatives)
            if self.uses_loa:
                zeros = torch.zeros_like(conditions["loa"].embedding[:1])
                loa = self.generate_loa(without) if sampling.unconditional == "gpt2" else zeros
                without["loa"] = Condition.of(loa)
            num_rows = len(next(iter(conditions.values())))
            read = {name: condition.expand(num_rows) for name, condition in without.items()}
            inputs.unconditional = self.unet_inputs(read)
        return inputs

    def sample_latent(self, inputs: UNetInputs, num_latent_frames: int, seeds: Sequence[int], sampling: Sampling,
                      edit: Edit = NO_EDIT, progress: Progress | None = None) -> Tensor:  # fmt: skip
        """What the T-UNet reads => latent (B, C, H, W). Sample i depends on row i and seeds[i] alone.

        Raises UserError where the latent is not finite.
        """
        shape = (self.unet.config.in_channels, num_latent_frames, self.audio.num_mel_bins // self.downsampling)
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
        """Log-mel (B, 1, F, M) => waveform (B, F · hop) in [-1, 1]."""
        if not self.by_griffin_lim:
            return vocode(self.vocoder, log_mel.to(self.dtype))
        waveform = griffin_lim(log_mel, self.audio)
        return waveform / waveform.abs().amax(1, keepdim=True).clamp(min=1.0)  # the network ends in tanh, this does not

    @torch.inference_mode()
    def generate(self, requests: str | Generation | Sequence[str | Generation], *, sampling: Sampling | None = None,
                 loa: Tensor | None = None, edit: Edit = NO_EDIT, progress: Progress | None = None,
                 **values: Any) -> Tensor:  # fmt: skip
        """Prompts or requests => waveforms (B, T) in float32 on the CPU.

        `values` are fields of Generation and Sampling that hold for all requests, such as `seconds=5, num_steps=50`; of
        Generation's also a list, one for each. One `seed` counts up. `sampling` is as the model was measured where it
        is not given. Of several `candidates` per prompt the one is returned that CLAP finds nearest to it. `loa`
        (B, L, D) replaces GPT-2's. `edit` keeps some of a source. `progress` is called with (step, number of steps).

        Warns of what is not read of a text. Raises UserError on an empty prompt, an unknown setting or one out of its
        range, lengths that differ, and a waveform that is not finite.
        """
        given = {name: value for name, value in values.items() if value is not None}
        asked, how = generation.by_name(given, Generation, Sampling)
        clips = generation.requests_of(requests, asked, empty_prompts=not self.needs_prompt)
        sampling = replace(sampling or self.sampling, **how)
        check_sampling(sampling, self.scheduler.config.num_train_timesteps)
        self.check_readable(clips, loa, edit)
        num_samples = self.lengths(clips, edit)[1]
        size = max(1, MAX_BATCH // sampling.candidates)  # prompts whose candidates make one batch
        starts = range(0, len(clips), size)
        made = []
        for number, start in enumerate(starts):
            rows = slice(start, start + size)
            latent = self.generate_latent(
                clips[rows], sampling, edit.rows(rows), None if loa is None else loa[rows],
                part_of(progress, number, len(starts)),
            )  # fmt: skip
            waveforms = [self.vocode(self.decode_mel(part))[:, :num_samples] for part in latent.split(MAX_BATCH)]
            made.append(self.best_of(torch.cat(waveforms).float().cpu(), clips[rows]))
        return torch.cat(made)

    def generate_latent(self, requests: Sequence[Generation], sampling: Sampling, edit: Edit = NO_EDIT,
                        loa: Tensor | None = None, progress: Progress | None = None) -> Tensor:  # fmt: skip
        """Requests => latents (B · candidates, C, H, W), a prompt's candidates one after another.

        GPT-2 runs once a prompt, the T-UNet on up to MAX_BATCH samples at once. `loa` (B, L, D) replaces GPT-2's.
        """
        inputs = self.encode(requests, sampling, edit, loa)
        num_latent_frames, count = self.lengths(requests, edit)[0], sampling.candidates
        seeds = [r.seed if j == 0 else seed_of(r.seed, j) for r in requests for j in range(count)]
        rows = torch.arange(len(requests)).repeat_interleave(count)  # (B · candidates,)
        chunks, latents = rows.split(MAX_BATCH), []
        for number, chunk in enumerate(chunks):
            latents.append(self.sample_latent(
                inputs.rows(chunk.to(self.device)), num_latent_frames, seeds[number * MAX_BATCH :][: len(chunk)],
                sampling, edit.rows(chunk), part_of(progress, number, len(chunks)),
            ))  # fmt: skip
        return torch.cat(latents)

    def encode(self, requests: Sequence[Generation], sampling: Sampling, edit: Edit = NO_EDIT,
               loa: Tensor | None = None) -> UNetInputs:  # fmt: skip
        """Requests => what the T-UNet reads of them, one row each; see `generate_latent`."""
        conditions = self.encode_conditions([r.prompt for r in requests], [r.transcript or "" for r in requests])
        if self.uses_loa:
            loa = self.generate_loa(conditions, edit.loa_prefix) if loa is None else loa
            check_finite(loa, "LOA", "the weights in language_model/, or what it reads, are damaged")
            conditions["loa"] = Condition.of(loa.to(self.device, self.dtype))
        return self.guided_inputs(conditions, [r.negative_prompt for r in requests], sampling)

    def best_of(self, waveforms: Tensor, requests: Sequence[Generation]) -> Tensor:
        """Each request's candidates (B · candidates, T) => of each the one that CLAP finds nearest to it (B, T)."""
        check_finite(waveforms, "the waveform", "the weights in vae/ or vocoder/ are damaged")
        count = len(waveforms) // len(requests)
        if count == 1:
            return waveforms
        tries = waveforms.split(count)
        return torch.stack([t[self.similarity(t, r.prompt).argmax()] for t, r in zip(tries, requests)])

    def check_readable(self, requests: Sequence[Generation], loa: Tensor | None, edit: Edit) -> None:
        """UserError where the model does not read what is given; warns of what no encoder reads of a text."""
        check_transcripts(requests, self.is_speech)
        num_given = (loa is not None) + (edit.loa_prefix is not None)
        if num_given and not self.uses_loa:
            raise UserError("this model reads no LOA; leave it out")
        if num_given == 2:
            raise UserError("loa and edit.loa_prefix: give one of them; GPT-2 continues nothing where LOA is given")
        edit.check(len(requests))
        warn_unread(self.conditioners.values(), generation.texts_of(requests))

    @torch.inference_mode()
    def reconstruct(self, waveform: Tensor) -> Tensor:
        """Waveform (B, T) through VAE and vocoder and back, (B, T)."""
        num_samples = waveform.shape[1]
        unit = self.audio.hop_length * self.downsampling
        padded = nn.functional.pad(waveform.to(self.device), (0, -num_samples % unit))
        log_mel = self.decode_mel(latent_of(self.vae, self.log_mel(padded).to(self.dtype), sample=False))
        return self.vocode(log_mel)[:, :num_samples].float().cpu()

    @torch.inference_mode()
    def loa_of(self, waveform: Tensor) -> Tensor:
        """AudioMAE's LOA (B, L, D) of whole clips (B, T). Raises UserError for a model without AudioMAE."""
        if self.audiomae is None:
            raise UserError("this model folder has no audiomae/; LOA of sound needs it")
        return self.audiomae.loa(self.fbank(waveform.to(self.device)))

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
        return not self.is_speech and any(conditioner.reads == "text" for conditioner in self.conditioners.values())

    @property
    def is_speech(self) -> bool:
        """Whether a request needs a transcript."""
        return any(conditioner.reads == "transcript" for conditioner in self.conditioners.values())

    @property
    def downsampling(self) -> int:
        """Frames to one latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def lengths(self, requests: Sequence[Generation], edit: Edit = NO_EDIT) -> tuple[int, int]:
        """Latent frames and samples of the clips: the latent covers them, the waveforms are cut to them.

        Raises UserError where requests, or they and the source of an edit, are not of one length.
        """
        seconds = {request.seconds for request in requests}
        if len(seconds) > 1:
            raise UserError(f"seconds={', '.join(map(str, seconds))}: the clips of one call have one length")
        unit = self.audio.hop_length * self.downsampling  # samples to one latent frame
        source = None if edit.latent is None else edit.latent.shape[2]
        default = self.audio.clip_seconds if source is None else source * unit / self.sample_rate
        num_samples = round((seconds.pop() or default) * self.sample_rate)
        smallest = 2 ** (len(self.unet.config.block_out_channels) - 1)  # the T-UNet halves it once a level
        num_latent_frames = max(smallest, math.ceil(num_samples / unit))
        if source not in (None, num_latent_frames):
            raise UserError(f"the clip is {num_latent_frames} latent frames long, but the edit's source has {source}")
        return num_latent_frames, num_samples


def check_finite(values: Tensor, what: str, cause: str) -> None:
    if not torch.isfinite(values).all():
        raise UserError(f"{what} is not finite: {cause}")
