"""AudioLDM2: text to sound, one method an arrow of the paper's Figure 1.

Letters: B prompts, L vectors of LOA, D width, C × H × W latent, T samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from audioldm2_pl.audio import AudioConfig, Fbank, LogMel, griffin_lim
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.errors import UserError
from audioldm2_pl.fields import check_fields, nearest
from audioldm2_pl.hub.folder import ModelFolder, find_model
from audioldm2_pl.models.diffusion import SAMPLERS, Sampling, guide, sample
from audioldm2_pl.models.gpt2 import LOAGenerator
from audioldm2_pl.models.unet import TUNetConfig, official_heads
from audioldm2_pl.models.vae import latent_of, log_mel_of
from audioldm2_pl.models.vocoder import front_end_of, vocode
from audioldm2_pl.seeds import seed_of

VOCODERS = ("folder", "griffin-lim")  # what makes waveforms of log-mels
MAX_BATCH = 16  # samples that go through the T-UNet at once


class AudioLDM2:
    """A model folder, open for generation.

    >>> model = AudioLDM2.from_pretrained("runs/demo/model")
    >>> waveform = model.generate(["a bell rings"])  # (1, T) at model.sample_rate
    """

    def __init__(self, folder: ModelFolder, device: str | torch.device = "cpu", gpt2: bool = True):
        """`gpt2=False` opens a folder that has no GPT-2 yet; such a model makes sound of LOA that it is given."""
        self.device = torch.device(device)
        self.unet, self.vae = self.place(folder.load("unet")), self.place(folder.load("vae"))
        self.clap = self.place(folder.clap())
        if not self.is_audioldm1 and (gpt2 or folder.has("text_encoder_2")):
            self.words = self.place(folder.words())
        if not self.is_audioldm1 and gpt2:
            generator = LOAGenerator(folder.load("language_model"), folder.load("projection_model"))
            self.loa_generator = self.place(generator)
        self.vocoder, self.by_griffin_lim = self.place(folder.load("vocoder")), False
        self.scheduler = folder.load("scheduler")
        self.sampling = folder.sampling()  # what `generate` takes where it is given nothing
        if self.sampling.sampler is not None:
            self.set_sampler(self.sampling.sampler)
        self.audio = audio_of(self.vae, self.vocoder, self.unet)
        self.sample_rate = self.audio.sample_rate
        self.log_mel = self.place(LogMel(self.audio))
        # The published folders have no AudioMAE: generation from text does without it.
        self.audiomae = self.place(folder.load("audiomae")) if folder.has("audiomae") else None
        self.fbank = self.place(Fbank(self.audio))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device = "cpu", heads: str = "folder", vocoder: str = "folder"
    ) -> AudioLDM2:
        """Opens a model folder or a hub id. Raises UserError where a part is missing.

        `heads="official"` gives the T-UNet 32 channels a head, as the authors trained it; the hub's folders say 8
        heads at every level, and a warning tells. `vocoder="griffin-lim"` finds the waveform without the network, by
        Griffin and Lim's algorithm: what a log-mel sounds like where the vocoder has not learnt enough.
        """
        if vocoder not in VOCODERS:
            raise UserError(f"--vocoder {vocoder}: choose one of {', '.join(VOCODERS)}")
        model = cls(ModelFolder(find_model(source)), device)
        model.by_griffin_lim = vocoder == "griffin-lim"
        config = model.unet.config
        if heads == "official":
            model.unet.set_heads(official_heads(config))
        elif set(config.num_heads) == {8} and config.block_out_channels == TUNetConfig().block_out_channels:
            warnings.warn(
                f"{source}: its T-UNet has 8 heads at every level, but was trained with 32 channels a head if its "
                'weights are the published ones; heads="official" (--heads official) sets that right',
                stacklevel=2,
            )
        return model

    def place(self, network: Any) -> Any:
        return network.to(self.device).eval().requires_grad_(False)

    # ---- the arrows

    def encode_text(self, texts: Sequence[str], transcripts: Sequence[str] | None = None) -> list[Condition]:
        """Prompts => [CLAP (B, 1, 512), T5 (B, L, 1024)], or with transcripts => [CLAP, phonemes (B, 310, 192)].

        AudioLDM 1 reads [CLAP] alone.
        """
        if self.is_audioldm1:
            return [self.clap.encode_text(texts)]
        return [self.clap.encode_text(texts), self.words(transcripts if self.is_speech else texts)]

    def generate_loa(self, conditions: list[Condition]) -> Tensor:
        """[CLAP, T5] => LOA (B, L, D) that GPT-2 says."""
        return self.loa_generator.generate(conditions)

    def sample_latent(self, loa: Tensor | None, text: Condition | None, num_latent_frames: int, seeds: Sequence[int],
                      num_steps: int = 200, guidance_scale: float = 3.5, eta: float = 1.0,
                      unconditional: str = "zero", negative_prompt: str | Sequence[str] = "",
                      film: Tensor | None = None, start: tuple[Tensor, int] | None = None) -> Tensor:  # fmt: skip
        """LOA and T5 (None for speech) => latent (B, C, H, W). Sample i depends on seeds[i] alone.

        `start` is latents (B, C, H, W) and the timestep that they are noised to, and sampled from, in noise's place.

        Guidance is against the negative prompt (one, or one a sample) and zero LOA, as in training's condition dropout,
        or with `unconditional="gpt2"` the LOA that GPT-2 says for the negative prompt, as in diffusers. AudioLDM 1 has
        CLAP's embedding `film` (B, D) in place of both; guidance is against CLAP's of the negative prompt.
        """
        shape = (self.unet.config.in_channels, num_latent_frames, self.audio.num_mel_bins // self.downsampling)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        conditions = [] if loa is None else [Condition(loa, torch.ones(loa.shape[:2], device=loa.device).bool())]
        conditions += [] if text is None else [text]
        guided = guidance_scale != 1.0
        if guided:
            negative = [negative_prompt] if isinstance(negative_prompt, str) else list(negative_prompt)
            nothing = self.no_conditions(loa, text, unconditional, negative)
            conditions = [Condition.cat(pair) for pair in zip(nothing, conditions)]
            if film is not None:
                film = torch.cat([self.clap.encode_text(negative).embedding[:, 0].expand_as(film), film])
        cache = self.unet.precompute(conditions)

        def predict(latent: Tensor, timestep: Tensor) -> Tensor:
            both = torch.cat([latent, latent]) if guided else latent
            prediction = self.unet(both, timestep.expand(len(both)), conditions, film, cache)
            if not guided:
                return prediction
            without, given = prediction.chunk(2)
            return guide(without, given, guidance_scale)

        scheduler = deepcopy(self.scheduler)  # it counts steps, and other threads sample too
        latent = sample(predict, scheduler, shape, num_steps, generators, self.device, eta, start)
        cause = f"guidance_scale={guidance_scale}, steps={num_steps}, eta={eta} or damaged weights in unet/"
        check_finite(latent, "the latent", f"{cause} made it so; take a lower guidance_scale first")
        return latent

    def no_conditions(
        self, loa: Tensor | None, text: Condition | None, unconditional: str, negative: list[str]
    ) -> list[Condition]:
        """What stands in LOA's and T5's place where guidance has no condition."""
        nothing = []
        if loa is not None:
            empty = torch.zeros_like(loa[:1])
            if unconditional == "gpt2":
                empty = self.generate_loa(self.encode_text(negative, [""] * len(negative)))
            nothing.append(Condition(empty, torch.ones(empty.shape[:2], device=loa.device).bool()).expand(len(loa)))
        if text is not None:
            nothing.append(self.words(negative).expand(len(text)))
        return nothing

    def decode_mel(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) => log-mel (B, 1, F, M)."""
        return log_mel_of(self.vae, latent)

    def vocode(self, log_mel: Tensor) -> Tensor:
        """Log-mel (B, 1, F, M) => waveform (B, F · hop) in [-1, 1]."""
        if not self.by_griffin_lim:
            return vocode(self.vocoder, log_mel)
        waveform = griffin_lim(log_mel, self.audio)
        return waveform / waveform.abs().amax(1, keepdim=True).clamp(min=1.0)  # the network ends in tanh, this does not

    # ---- the whole way

    @torch.inference_mode()
    def generate(self, texts: str | Sequence[str], seconds: float | None = None, steps: int | None = None,
                 guidance_scale: float | None = None, seed: int | Sequence[int] = 0, candidates: int | None = None,
                 eta: float | None = None, loa: Tensor | None = None, unconditional: str | None = None,
                 negative_prompt: str | Sequence[str] = "",
                 transcripts: str | Sequence[str] | None = None) -> Tensor:  # fmt: skip
        """Prompts => waveforms (B, T) on the CPU. What is None of the sampling is as the model was measured.

        `seed` is one per prompt, or the first of consecutive ones. Of `candidates` per prompt the one that CLAP finds
        nearest to it is kept. `loa` (B, L, D) takes GPT-2's place. A speech model says `transcripts`; they and
        `negative_prompt` are one for each prompt or one for all. Warns of what is not read of a text. Raises UserError
        on an empty prompt, a setting out of its range, and a waveform that is not finite.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_prompts(texts, may_be_empty=self.is_speech)  # captions of speech corpora are, and were in training
        spoken = self.check_transcripts(transcripts, len(texts))
        seeds: list[Any] = (
            [int(seed) + i for i in range(len(texts))] if isinstance(seed, Integral) else list(seed)  # type: ignore[arg-type]
        )
        check_seeds(seeds, len(texts))
        negatives = [negative_prompt] * len(texts) if isinstance(negative_prompt, str) else list(negative_prompt)
        check_prompts(negatives, may_be_empty=True)
        if len(negatives) != len(texts):
            raise UserError(f"{len(negatives)} negative prompts for {len(texts)} prompts; give one, or one for each")
        s = self.sampling_with(steps=steps, guidance_scale=guidance_scale, eta=eta, unconditional=unconditional,
                               candidates=candidates)  # fmt: skip
        if loa is not None and self.is_audioldm1:
            raise UserError("AudioLDM 1 reads no LOA; leave it out")
        num_latent_frames, num_samples = self.lengths(seconds)
        self.warn_of_unread([*texts, *negatives], spoken or [])
        if s.candidates > 1:
            kept = [
                self.best_of(s.candidates, text, seeds[i], seconds, s, None if loa is None else loa[i : i + 1],
                             negatives[i], None if spoken is None else spoken[i])
                for i, text in enumerate(texts)
            ]  # fmt: skip
            return torch.stack(kept)
        waveforms = []
        for i in range(0, len(texts), MAX_BATCH):
            rows = slice(i, i + MAX_BATCH)
            negative = negative_prompt if isinstance(negative_prompt, str) else negatives[rows]
            latent = self.generate_latent(texts[rows], seeds[rows], num_latent_frames, s.steps, s.guidance_scale, s.eta,
                                          None if loa is None else loa[rows], s.unconditional, negative,
                                          None if spoken is None else spoken[rows])  # fmt: skip
            waveforms.append(self.vocode(self.decode_mel(latent))[:, :num_samples].float().cpu())
            check_finite(waveforms[-1], "the waveform", "the weights in vae/ or vocoder/ are damaged")
        return torch.cat(waveforms)

    def best_of(self, count: int, text: str, seed: int, seconds: float | None, s: Sampling, loa: Tensor | None,
                negative_prompt: str, transcript: str | None) -> Tensor:  # fmt: skip
        """Of `count` waveforms for a prompt the one (T,) that CLAP finds nearest to it."""
        seeds = [seed if j == 0 else seed_of(seed, j) for j in range(count)]
        clips = self.generate([text] * count, seconds, s.steps, s.guidance_scale, seeds, 1, s.eta,
                              None if loa is None else loa.expand(count, -1, -1), s.unconditional, negative_prompt,
                              transcript)  # fmt: skip
        return clips[self.similarity(clips, text).argmax()]

    def sampling_with(self, **given: Any) -> Sampling:
        """The model's own sampling but for what is given. Raises UserError for a number out of its range."""
        sampling = replace(self.sampling, **{name: value for name, value in given.items() if value is not None})
        check_fields(sampling)
        if sampling.steps > (most := self.scheduler.config.num_train_timesteps):
            raise UserError(f"steps={sampling.steps} has to be from 1 to {most}, the timesteps of training")
        return sampling

    def warn_of_unread(self, texts: Sequence[str], transcripts: Sequence[str]) -> None:
        """Says what no encoder reads of prompts and transcripts."""
        pairs = [(self.clap, text) for text in texts]
        if not self.is_audioldm1:
            pairs += [(self.words, text) for text in (transcripts if self.is_speech else texts)]
        for encoder, text in dict.fromkeys(pairs):
            for line in encoder.unread(text):
                warnings.warn(f"{text[:40]!r}: {line}", stacklevel=3)

    def generate_latent(self, texts: Sequence[str], seeds: Sequence[int], num_latent_frames: int, steps: int = 200,
                        guidance_scale: float = 3.5, eta: float = 1.0, loa: Tensor | None = None,
                        unconditional: str = "zero", negative_prompt: str | Sequence[str] = "",
                        transcripts: Sequence[str] | None = None,
                        start: tuple[Tensor, int] | None = None) -> Tensor:  # fmt: skip
        """Prompts, and for speech transcripts => latent (B, C, H, W); see `generate` and `sample_latent`."""
        conditions = self.encode_text(texts, transcripts)
        text, film = None, None
        if self.is_audioldm1:
            film = conditions[0].embedding[:, 0]
        else:
            loa = self.generate_loa(conditions) if loa is None else loa.to(self.device)
            check_finite(loa, "LOA", "the weights in language_model/, or what it reads, are damaged")
            text = None if self.is_speech else conditions[1]
        return self.sample_latent(loa, text, num_latent_frames, seeds, steps, guidance_scale, eta, unconditional,
                                  negative_prompt, film, start)  # fmt: skip

    @torch.inference_mode()
    def reconstruct(self, waveform: Tensor) -> Tensor:
        """Waveform (B, T) through VAE and vocoder and back, (B, T)."""
        num_samples = waveform.shape[1]
        unit = self.audio.hop_length * self.downsampling
        padded = nn.functional.pad(waveform.to(self.device), (0, -num_samples % unit))
        log_mel = self.decode_mel(latent_of(self.vae, self.log_mel(padded), sample=False))
        return self.vocode(log_mel)[:, :num_samples].float().cpu()

    @torch.inference_mode()
    def loa_of(self, waveform: Tensor) -> Tensor:
        """AudioMAE's LOA (B, L, D) of whole clips (B, T). Raises UserError for a model without AudioMAE."""
        if self.audiomae is None:
            raise UserError("this model folder has no audiomae/; LOA of sound needs it")
        return self.audiomae.loa(self.fbank(waveform.to(self.device)))

    @torch.inference_mode()
    def similarity(self, waveform: Tensor, text: str) -> Tensor:
        """Cosine of CLAP's embeddings of waveforms (B, T) and one text, (B,)."""
        sound = self.clap.encode_audio(waveform.to(self.device), self.sample_rate).embedding[:, 0]
        return (sound @ self.clap.encode_text([text]).embedding[0, 0]).cpu()

    @property
    def is_audioldm1(self) -> bool:
        """Whether CLAP's embedding of the prompt is all that the T-UNet reads."""
        return self.unet.config.film_dim is not None

    @property
    def is_speech(self) -> bool:
        return not self.is_audioldm1 and isinstance(self.words, PhonemeEncoder)

    def check_transcripts(self, transcripts: str | Sequence[str] | None, num_prompts: int) -> list[str] | None:
        """One transcript a prompt for a speech model, None for others. Raises UserError where they do not fit."""
        if not self.is_speech:
            if transcripts is not None:
                raise UserError("this model does not speak; leave the transcript out, or open a speech model")
            return None
        if transcripts is None:
            raise UserError("this model speaks; give --transcript, what it is to say")
        spoken = [transcripts] * num_prompts if isinstance(transcripts, str) else list(transcripts)
        if len(spoken) != num_prompts or not all(transcript.strip() for transcript in spoken):
            raise UserError(f"{len(spoken)} transcripts for {num_prompts} prompts; give one for each, none empty")
        return spoken

    # ---- lengths

    @property
    def downsampling(self) -> int:
        """Frames to one latent position."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def lengths(self, seconds: float | None) -> tuple[int, int]:
        """Latent frames and samples of a clip: the latent covers it, the waveform is cut to it."""
        seconds = self.audio.clip_seconds if seconds is None else seconds
        if not 0 < seconds <= 600:
            raise UserError(f"--seconds {seconds}: a length between 0 and 600 seconds")
        num_samples = round(seconds * self.sample_rate)
        unit = self.audio.hop_length * self.downsampling
        # the T-UNet halves the latent once a level; a latent shorter than that has nothing left to halve
        smallest = 2 ** (len(self.unet.config.block_out_channels) - 1)
        return max(smallest, -(-num_samples // unit)), num_samples

    def set_sampler(self, name: str) -> None:
        """Another sampler of `models.diffusion.SAMPLERS` over the same noise schedule."""
        if name not in SAMPLERS:
            raise UserError(f"--sampler {name}: {nearest(name, list(SAMPLERS))}")
        cls, settings = SAMPLERS[name]
        self.scheduler = getattr(diffusers, cls).from_config(self.scheduler.config, **settings)


def check_prompts(texts: Sequence[str], may_be_empty: bool = False) -> None:
    if not texts:
        raise UserError('no prompt; give one or more, for example "a bell rings"')
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"prompt {number} is no text: {text!r}")
        if not text.strip() and not may_be_empty:
            raise UserError(f"prompt {number} is empty; write what you want to hear")


def check_seeds(seeds: Sequence[int], num_prompts: int) -> None:
    if len(seeds) != num_prompts:
        raise UserError(f"{len(seeds)} seeds for {num_prompts} prompts; give one seed, or one for each prompt")
    for seed in seeds:
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise UserError(f"seed={seed} has to be a whole number from 0 to 2^63 - 1")


def check_finite(values: Tensor, what: str, cause: str) -> None:
    if not torch.isfinite(values).all():
        raise UserError(f"{what} is not finite: {cause}")


def audio_of(vae, vocoder, unet) -> AudioConfig:
    """The audio front end that a model folder's parts were trained with."""
    front_end = front_end_of(vocoder)
    frames = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    clip_seconds = frames * front_end["hop_length"] / front_end["sample_rate"]
    return AudioConfig(clip_seconds=clip_seconds, **front_end)
