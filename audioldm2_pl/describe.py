"""What an experiment is before it runs: settings, lengths, parameters, and the memory that training takes.

Networks are built on the meta device, so a full-size experiment is described on any machine.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from audioldm2_pl.conditioners.clap import CLAP
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.conditioners.t5 import T5
from audioldm2_pl.config import ExperimentConfig, to_plain
from audioldm2_pl.models.audiomae import AudioMAE, num_loa_vectors
from audioldm2_pl.models.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator, PatchGAN
from audioldm2_pl.models.gpt2 import LOAGenerator, build_gpt2, build_projection
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import build_vae
from audioldm2_pl.models.vocoder import build_vocoder

GIB = 2**30
BYTES = 4  # of a float32: weights, gradients and Adam's averages are kept in it whatever the precision

# Stage -> networks that it trains, and networks that it only runs.
TRAINED = {
    "clap": ("clap",),
    "audiomae": ("audiomae",),
    "vae": ("vae", "vae discriminator"),
    "vocoder": ("vocoder", "vocoder discriminators"),
    "decoder": ("vae decoder",),
    "ldm": ("unet", "t5"),
    "gpt2": ("loa generator", "t5", "phonemes"),
    "joint": ("unet", "loa generator", "t5", "phonemes"),
}
FROZEN = {
    "decoder": ("vae",),
    "ldm": ("vae", "audiomae"),
    "gpt2": ("audiomae", "clap"),
    "joint": ("vae", "audiomae", "clap"),
}
SAMPLING = ("clap", "t5", "phonemes", "loa generator", "unet", "vae", "vocoder", "audiomae")  # an open model folder


def build_networks(experiment: ExperimentConfig) -> dict[str, nn.Module]:
    """Every network of the experiment on the meta device; pretrained conditioners are left out."""
    training = experiment.training
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "audiomae": AudioMAE(experiment.audiomae),
            "vae": build_vae(experiment.vae),
            "vae discriminator": PatchGAN(training.vae.discriminator),
            "vocoder": build_vocoder(experiment.vocoder),
            "vocoder discriminators": nn.ModuleList(
                [
                    MultiPeriodDiscriminator(training.vocoder.period_discriminator),
                    MultiScaleDiscriminator(training.vocoder.scale_discriminator),
                ]
            ),
            "unet": TUNet(experiment.unet),
        }
        if "decoder" in experiment.stages:
            networks["vae decoder"] = networks["vae"].decoder  # type: ignore[assignment]
        if experiment.conditioners.clap.pretrained is None:
            networks["clap"] = CLAP.build(experiment.conditioners.clap)
        if experiment.conditioners.t5.pretrained is None and not experiment.is_speech:
            networks["t5"] = T5.build(experiment.conditioners.t5)
        if experiment.conditioners.phonemes is not None:
            networks["phonemes"] = PhonemeEncoder.build(experiment.conditioners.phonemes)
        if experiment.gpt2.pretrained is None:
            gpt2 = build_gpt2(experiment.gpt2, num_loa_vectors(experiment.audiomae))
            networks["loa generator"] = LOAGenerator(
                gpt2, build_projection(condition_dims(experiment), experiment.gpt2, num_symbols(experiment))
            )
    # some buffers are made by NumPy, which knows no meta device
    return {name: network.to("meta") for name, network in networks.items()}


def condition_dims(experiment: ExperimentConfig) -> list[int]:
    """Widths of CLAP's and T5's embeddings: the config's, or of a pretrained pair those the T-UNet expects."""
    clap, t5 = experiment.conditioners.clap, experiment.conditioners.t5
    if experiment.conditioners.phonemes is not None:
        return [clap.projection_dim, experiment.conditioners.phonemes.hidden_size]
    text_dims = [dim for dim in experiment.unet.cross_attention_dim if dim is not None]
    pretrained_dim = text_dims[1] if len(text_dims) > 1 else t5.d_model
    return [clap.projection_dim, t5.d_model if t5.pretrained is None else pretrained_dim]


def pretrained_of(experiment: ExperimentConfig) -> dict[str, str]:
    """Network -> hub id or folder, of those whose sizes only their files tell."""
    conditioners = experiment.conditioners
    t5 = None if experiment.is_speech else conditioners.t5.pretrained
    sources = {"clap": conditioners.clap.pretrained, "t5": t5, "loa generator": experiment.gpt2.pretrained}
    return {name: source for name, source in sources.items() if source is not None}


def num_symbols(experiment: ExperimentConfig) -> int | None:
    phonemes = experiment.conditioners.phonemes
    return None if phonemes is None else phonemes.max_length


def num_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def saved_bytes(run: Any) -> int:
    """Bytes that autograd keeps for the backward pass of `run()`."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        if not isinstance(tensor, nn.Parameter):
            total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return total


def activation_bytes(experiment: ExperimentConfig, stage: str, networks: dict[str, nn.Module]) -> int:
    """Activations of one batch of a stage's main network, counted on the meta device in float32."""
    audio, config = experiment.audio, getattr(experiment.training, stage)
    num_frames = round((config.crop_seconds or audio.clip_seconds) * audio.frames_per_second)
    with torch.device("meta"):
        if stage == "audiomae":
            fbank = torch.empty(config.batch_size, 1, experiment.audiomae.num_frames, experiment.audiomae.num_bins)
            return saved_bytes(lambda: networks["audiomae"](fbank))
        if stage == "vae":
            log_mel = torch.empty(config.batch_size, 1, num_frames, audio.num_mel_bins)
            return saved_bytes(lambda: networks["vae"](log_mel))
        if stage == "decoder":
            r = experiment.vae.downsampling
            latent = torch.empty(
                config.batch_size, experiment.vae.latent_channels, num_frames // r, audio.num_mel_bins // r
            )
            return saved_bytes(lambda: networks["vae decoder"](latent))
        if stage == "vocoder":
            log_mel = torch.empty(config.batch_size, num_frames, audio.num_mel_bins)
            return saved_bytes(lambda: networks["vocoder"](log_mel))
        if stage in ("ldm", "joint"):
            latent_bins = audio.num_mel_bins // experiment.vae.downsampling
            latent = torch.empty(
                config.batch_size, experiment.unet.in_channels, experiment.unet.sample_size, latent_bins
            )
            timestep = torch.zeros(config.batch_size)
            lengths = [num_loa_vectors(experiment.audiomae, 1 if stage == "ldm" else None), 32]
            dims = [dim for dim in experiment.unet.cross_attention_dim if dim is not None]
            conditions = [
                Condition(
                    torch.empty(config.batch_size, length, dim),
                    torch.ones(config.batch_size, length, dtype=torch.bool),
                )
                for length, dim in zip(lengths, dims)
            ]
            film_dim = experiment.unet.film_dim
            film = None if film_dim is None else torch.empty(config.batch_size, film_dim)
            return saved_bytes(lambda: networks["unet"](latent, timestep, conditions, film))
    return 0


def frozen_networks(experiment: ExperimentConfig, stage: str) -> tuple[str, ...]:
    samples = stage == "decoder" and experiment.training.decoder.sampled_from
    return FROZEN.get(stage, ()) + (SAMPLING if samples else ())


def training_memory(experiment: ExperimentConfig, stage: str, networks: dict[str, nn.Module]) -> float:
    """GiB on one device: weights, gradients, Adam's two averages, the EMA, frozen weights, activations."""
    config = getattr(experiment.training, stage)
    trained = sum(num_parameters(networks[name]) for name in TRAINED[stage] if name in networks)
    frozen = sum(num_parameters(networks[name]) for name in frozen_networks(experiment, stage) if name in networks)
    copies = 4 + (config.ema_decay is not None)
    # autocast keeps float32 tensors beside its half ones, so activations are no smaller under it
    return (BYTES * (copies * trained + frozen) + activation_bytes(experiment, stage, networks)) / GIB


def describe(experiment: ExperimentConfig) -> str:
    """The text of `audioldm2 describe`."""
    audio, mae = experiment.audio, experiment.audiomae
    networks = build_networks(experiment)
    rows, columns = mae.num_frames // mae.patch_size, mae.num_bins // mae.patch_size
    latent_bins = audio.num_mel_bins // experiment.vae.downsampling
    lines = ["# settings", OmegaConf.to_yaml(OmegaConf.create(to_plain(experiment))).rstrip(), "", "# lengths"]
    lines += [
        f"waveform        {audio.num_samples:,} samples: {audio.clip_seconds} s at {audio.sample_rate:,} Hz",
        f"log-mel         {audio.num_frames} frames × {audio.num_mel_bins} bins",
        f"latent          {experiment.unet.in_channels} × {experiment.unet.sample_size} × {latent_bins}",
        f"fbank           {mae.num_frames} frames × {mae.num_bins} bins: {rows} × {columns} patches × {mae.embed_dim}",
        "LOA             " + ", ".join(f"λ={k}: {num_loa_vectors(mae, k)}" for k in (1, 2, 4, 8) if rows >= k)
        + f" vectors; generation takes λ={mae.pooling}",
        "",
        "# parameters",
    ]  # fmt: skip
    lines += [f"{name:<24}{num_parameters(network) / 1e6:10.2f} M" for name, network in networks.items()]
    lines += [f"{name:<24}{source:>12}" for name, source in pretrained_of(experiment).items()]
    left_out = [f"weights of {name} ({source})" for name, source in pretrained_of(experiment).items()]
    left_out += ["activations of CLAP, T5, phonemes and GPT-2", "cached features"]
    lines += ["", "# training memory, estimated, on each device: weights, gradients, Adam's averages, EMA, activations"]
    lines += [f"# not counted: {'; '.join(left_out)}"]
    for stage in experiment.stages:
        config = getattr(experiment.training, stage)
        memory = training_memory(experiment, stage, networks)
        lines.append(f"{stage:<10}{config.batches:>10,} batches of {config.batch_size:<4}{memory:8.2f} GiB")
    return "\n".join(lines)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings => dotted key -> value; lists stay whole."""
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        name = prefix + key.rstrip("_")
        rows |= flat(value, name + ".") if isinstance(value, dict) and value else {name: value}
    return rows


def difference(name: str, experiment: ExperimentConfig, other_name: str, other: ExperimentConfig) -> str:
    """The text of `audioldm2 describe A.yaml --diff B.yaml`: one line a setting that differs."""
    ours, theirs = flat(to_plain(experiment)), flat(to_plain(other))
    keys = [k for k in ours | theirs if ours.get(k, "-") != theirs.get(k, "-") and k not in ("name", "description")]
    if not keys:
        return f"{name} and {other_name} have the same settings"
    rows = [("setting", name, other_name)] + [(k, str(ours.get(k, "-")), str(theirs.get(k, "-"))) for k in keys]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:<{widths[0]}}  {a:<{widths[1]}}  {b}" for key, a, b in rows)
