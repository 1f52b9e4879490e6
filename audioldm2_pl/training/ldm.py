"""Stage `ldm`: the T-UNet learns to make latents from AudioMAE's LOA, without needing captions (paper §III-D2)."""

from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor

from audioldm2_pl.audio import save_waveform
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.config import CONDITIONS, conditioner_class
from audioldm2_pl.fields import bounded
from audioldm2_pl.generation import Generation
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import num_loa_vectors, pool_loa
from audioldm2_pl.models.diffusion import DiffusionConfig, build_scheduler, diffusion_loss
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.pipeline import AudioLDM2
from audioldm2_pl.seeds import seed_of
from audioldm2_pl.training.audio_encoder import AudioEncoder
from audioldm2_pl.training.conditions import (
    condition_widths,
    draw_dropped,
    drop_conditions,
    open_conditioners,
)
from audioldm2_pl.training.optimizer import OptimizerConfig
from audioldm2_pl.training.stage import Stage, StageConfig
from audioldm2_pl.transcripts import transcript_for


@dataclass
class LDMTrainingConfig(StageConfig):
    """AdamW 1e-4 with linear warm-up and no decay (paper §IV-D)."""

    batches: int = 800_000
    batch_size: int = 16
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, warmup_batches=10_000)
    )
    loss_weights: dict[str, float | None] = bounded(lambda: {"diffusion": 1.0}, keys=("diffusion",), ge=0)
    ema_decay: float | None = 0.9999
    poolings: list[int] = bounded(lambda: [1, 2, 4, 8], ge=1, le=4_096, min_length=1)  # λ, one drawn for each batch


def open_unet(folder: ModelFolder, num_heads: list[int]) -> TUNet:
    """The model folder's T-UNet with the heads of the experiment, which a hub's folder may have wrong."""
    unet: TUNet = folder.load("unet")
    if list(unet.config.num_heads) != list(num_heads):
        print(f"unet: its folder says {unet.config.num_heads} heads, the experiment {num_heads}, which are taken")
        unet.set_heads(num_heads)
    return unet


def open_audio_encoder(experiment: Any, folder: ModelFolder) -> AudioEncoder:
    """VAE, and AudioMAE where the T-UNet reads LOA, out of the model folder."""
    audiomae = folder.load("audiomae") if experiment.uses_loa else None
    loa = experiment.audiomae
    return AudioEncoder(experiment.audio, folder.load("vae"), audiomae, loa.pooling, loa.speech_pooling)


def unet_condition_names(stage: Any) -> list[str]:
    """Names of what the stage's T-UNet reads, that beside the timestep last."""
    config = stage.unet.config
    return [*config.conditions, *filter(None, [config.film])]


def draw_dropped_clips(stage: Any, batch_size: int) -> dict[str, Tensor]:
    """Condition -> (B,) bool: which clips are trained without it; none in validation."""
    spared = stage.diffusion.keep_first_batch and stage.batch_idx == 0
    if not stage.training or spared:
        return {}
    return draw_dropped(stage.diffusion, unet_condition_names(stage), batch_size, stage.shared)


def conditional_loss(
    stage: Any, latent: Tensor, conditions: dict[str, Condition], dropped: dict[str, Tensor]
) -> Tensor:
    """The diffusion loss of latents (B, C, H, W) under named conditions, of dropped clips their empty ones."""
    config = stage.unet.config
    left = drop_conditions(
        {name: conditions[name] for name in unet_condition_names(stage)}, dropped, stage.conditioners
    )
    film = None if config.film is None else left[config.film].embedding[:, 0]  # (B, D)
    read = [left[name] for name in config.conditions]
    generator = stage.shared.on(latent.device)
    return diffusion_loss(stage.diffusion, lambda z, t: stage.unet(z, t, read, film), latent, generator)


class LDMPretraining(Stage):
    """Trains the T-UNet, and the text encoders that it reads and that are not frozen."""

    name = "ldm"
    makes = "unet"
    settings = ("conditioners", "audiomae", "vae", "unet", "diffusion")
    reads_features = True
    networks = ("unet", *CONDITIONS, "vae", "audiomae")
    compiles = ("unet",)
    adapts: ClassVar = {"unet": "unet"}

    def __init__(
        self,
        config: LDMTrainingConfig,
        unet: TUNet,
        audio_encoder: AudioEncoder,
        conditioners: dict[str, Any],
        diffusion: DiffusionConfig,
    ):
        super().__init__(config)
        self.unet = unet
        self.diffusion = diffusion
        self.add_inputs(audio_encoder, conditioners)
        self.averaged = ("unet", *self.trained_conditioners)

    @classmethod
    def build(cls, experiment: Any, folder: ModelFolder) -> Stage:
        if "unet" in folder.started:
            unet = open_unet(folder, experiment.unet.num_heads)
        else:
            unet = TUNet(experiment.unet, condition_widths(experiment, folder))
        conditioners = open_conditioners(experiment, folder, experiment.unet_conditioners, afresh=True)
        audio_encoder = open_audio_encoder(experiment, folder)
        return cls(experiment.training.ldm, unet, audio_encoder, conditioners, experiment.diffusion)

    @classmethod
    def reads(cls, experiment: Any) -> tuple[str, ...]:
        trained = [name for name in experiment.unet_conditioners if conditioner_class(name).has_own_stage]
        return ("vae", *(("audiomae",) if experiment.uses_loa else ()), *trained)

    @classmethod
    def writes(cls, experiment: Any) -> tuple[str, ...]:
        return ("unet", *experiment.trainable_conditioners(experiment.unet_conditioners))

    def features(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.encode_sound(batch)  # (B, ...) each

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        features = self.features_of(batch)
        generator = self.shared.on(features["mean"].device)
        latent = self.frozen["audio_encoder"].draw_latent(features, generator)  # type: ignore  # (B, C, H, W)
        dropped = draw_dropped_clips(self, len(latent))
        conditions = self.encode(batch, features)
        if "grid" in features:
            loa = pool_loa(features["grid"], self.shared.python.choice(self.config.poolings))
            conditions["loa"] = Condition.of(loa)
        return {"diffusion": conditional_loss(self, latent, conditions, dropped)}

    def parts(self) -> dict[str, Any]:
        return {"unet": self.unet, **self.conditioner_parts(), "scheduler": build_scheduler(self.diffusion)}

    def preview(self, folder: ModelFolder, batch: dict[str, Any], experiment: Any) -> Tensor | None:
        """What the T-UNet makes of each clip's own LOA, and of the other conditions."""
        model = AudioLDM2(folder, self.device, gpt2=False)
        return generate_previews(model, batch, experiment, model.loa_of(batch["waveform"]) if model.uses_loa else None)

    def example(self, experiment: Any) -> tuple[Any, ...] | None:
        return unet_example(
            self, experiment, max(num_loa_vectors(experiment.audiomae, k) for k in self.config.poolings)
        )


def generate_previews(model: AudioLDM2, batch: dict[str, Any], experiment: Any, loa: Tensor | None = None) -> Tensor:
    """A batch's prompts and transcripts => waveforms (B, T), with the same noise in every preview.

    Two previews of a clip then differ by the weights alone. `loa` (B, L, D) takes the place of GPT-2's. A model of
    pictures hears the clip itself, as in training.
    """
    requests = [
        Generation(text, transcript=transcript_for(model, transcript), seed=seed_of(experiment.seed, "samples", i))
        for i, (text, transcript) in enumerate(zip(batch["text"], batch["transcript"]))
    ]
    with TemporaryDirectory() as folder:
        if "image" in model.conditioners:
            for i, waveform in enumerate(batch["waveform"]):
                requests[i].audio = path = f"{folder}/{i}.wav"
                save_waveform(path, waveform, model.sample_rate)
        return model.generate(requests, sampling=experiment.sampling, loa=loa)


def unet_example(stage: Any, experiment: Any, num_loa: int) -> tuple[Any, ...]:
    """The T-UNet and a batch of its inputs."""
    size, config = stage.config.batch_size, stage.unet.config
    bins = experiment.audio.num_mel_bins // experiment.vae.downsampling
    latent = torch.empty(size, config.in_channels, config.sample_size, bins)
    lengths = {"loa": num_loa}
    conditions = [
        Condition.of(torch.empty(size, lengths.get(name, 32), stage.unet.condition_widths[name]))
        for name in config.conditions
    ]
    film = None if config.film is None else torch.empty(size, stage.unet.condition_widths[config.film])
    return stage.unet, latent, torch.zeros(size), conditions, film
