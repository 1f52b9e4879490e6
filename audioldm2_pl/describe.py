"""What an experiment is before it runs: settings, lengths, parameters, and the memory that training takes.

Networks are built on the meta device, so a full-size experiment is described on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from audioldm2_pl.config import STAGES, ExperimentConfig, to_plain
from audioldm2_pl.generation import Sampling
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.audiomae import AudioMAE, num_loa_vectors
from audioldm2_pl.models.diffusion import build_scheduler
from audioldm2_pl.models.unet import TUNet
from audioldm2_pl.models.vae import build_vae
from audioldm2_pl.models.vocoder import build_vocoder, note_front_end
from audioldm2_pl.training.adapter import adapt, adapted_networks
from audioldm2_pl.training.conditions import condition_widths
from audioldm2_pl.training.gpt2 import build_loa_generator
from audioldm2_pl.training.stage import Stage

GIB = 2**30
BYTES = 4  # of a float32: weights, gradients and Adam's averages are kept in it whatever the precision


class MetaFolder(ModelFolder):
    """A model folder whose every part is there with the experiment's sizes, on the meta device."""

    device = "meta"

    def __init__(self, experiment: ExperimentConfig):
        super().__init__(experiment.model_folder)
        self.experiment = experiment

    def load(self, part: str) -> Any:
        e = self.experiment
        builders: dict[str, Callable[[], Any]] = {
            "vae": lambda: build_vae(e.vae),
            "vocoder": lambda: note_front_end(build_vocoder(e.vocoder), e.audio),
            "audiomae": lambda: AudioMAE(e.audiomae),
            "unet": lambda: TUNet(e.unet, condition_widths(e, self)),
            "language_model": lambda: build_loa_generator(e, self).gpt2,
            "projection_model": lambda: build_loa_generator(e, self).projection,
            "scheduler": lambda: build_scheduler(e.diffusion),
        }
        return builders[part]()

    def has_conditioner(self, name: str) -> bool:
        return True

    def conditioner_config(self, name: str) -> dict[str, Any]:
        return {}

    def conditioner(self, name: str) -> Any:
        """Built of its config; of a pretrained one only the width is known."""
        config = getattr(self.experiment.conditioners, name)
        return config.build() if config.pretrained is None else Unknown(name, config.width)

    def sampling(self) -> Sampling:
        return self.experiment.sampling


class Unknown(nn.Module):
    """In a pretrained conditioner's place: its sizes stand in files that are not here."""

    stored: tuple[str, ...] = ("",)

    def __init__(self, name: str, width: int):
        super().__init__()
        self.name = name
        self.width = width
        self.reads = "text"


def build_on_meta(experiment: ExperimentConfig, stage: type[Stage]) -> Stage:
    """A stage without weights: names and sizes alone."""
    with torch.device("meta"):
        sized = replace(experiment, gpt2=replace(experiment.gpt2, pretrained=None))  # GPT-2 of the config's size
        built = stage.build(sized, MetaFolder(sized))
        if experiment.adapter is not None and adapted_networks(stage, experiment.adapter):
            adapt(built, experiment.adapter)
    for network in (built, *built.frozen_networks()):
        network.to("meta")  # some buffers are made by NumPy, which knows no meta device
    return built


def stages_of(experiment: ExperimentConfig) -> list[Stage]:
    """The experiment's stages, on the meta device."""
    return [build_on_meta(experiment, STAGES[name]) for name in experiment.stages]


def networks_of(stages: Sequence[Stage]) -> dict[str, nn.Module]:
    """Every network that the stages train or run, by name."""
    networks: dict[str, nn.Module] = {}
    for stage in stages:
        found = {top: stage.network(top) for top in stage.networks}
        networks |= {top: network for top, network in found.items() if network is not None}
    return networks


def pretrained_of(experiment: ExperimentConfig) -> dict[str, str]:
    """Network -> hub id or folder, of those whose sizes only their files tell."""
    given = {**experiment.start_from, **experiment.from_}
    sources = {
        name: given.get(name) or getattr(experiment.conditioners, name).pretrained
        for name in experiment.condition_names
    }
    if experiment.uses_loa:
        sources["loa_generator"] = experiment.gpt2.pretrained
    return {name: source for name, source in sources.items() if source is not None}


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


def activation_bytes(experiment: ExperimentConfig, stage: Stage) -> int:
    """Activations of one batch of a stage's main network, counted on the meta device in float32."""
    with torch.device("meta"):
        example = stage.example(experiment)
        return 0 if example is None else saved_bytes(lambda: example[0](*example[1:]))


def training_flops(experiment: ExperimentConfig, stage: Stage) -> int:
    """Floating-point operations of one batch of a stage's main network, forward and backward; 0 where it has none."""
    built = build_on_meta(experiment, type(stage))
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        example = built.example(experiment)
        if example is None:
            return 0
        output: Any = example[0](*example[1:])
        getattr(output, "sample", output).sum().backward()  # diffusers' VAE wraps it
    return counter.get_total_flops()


def num_trained(stage: Stage) -> int:
    return sum(p.numel() for p in stage.parameters() if p.requires_grad)


def training_memory(experiment: ExperimentConfig, stage: Stage) -> float:
    """GiB on one device: weights, gradients, Adam's two averages, the EMA, frozen weights, activations."""
    trained = num_trained(stage)
    frozen = sum(map(num_parameters, stage.frozen_networks())) + num_parameters(stage) - trained
    copies = 4 + (stage.config.ema_decay is not None)
    # autocast keeps float32 tensors beside its half ones, so activations are no smaller under it
    return (BYTES * (copies * trained + frozen) + activation_bytes(experiment, stage)) / GIB


def describe(experiment: ExperimentConfig) -> str:
    """The text of `audioldm2 describe`."""
    audio, mae = experiment.audio, experiment.audiomae
    stages = stages_of(experiment)
    networks = networks_of(stages)
    rows, columns = mae.num_frames // mae.patch_size, mae.num_bins // mae.patch_size
    latent_bins = audio.num_mel_bins // experiment.vae.downsampling
    lines = ["# settings", OmegaConf.to_yaml(OmegaConf.create(to_plain(experiment))).rstrip(), "", "# lengths"]
    lines += [
        f"waveform        {audio.num_samples:,} samples: {audio.clip_seconds} s at {audio.sample_rate:,} Hz",
        f"log-mel         {audio.num_frames} frames × {audio.num_mel_bins} bins",
        f"latent          {experiment.unet.in_channels} × {experiment.unet.sample_size} × {latent_bins}",
        f"fbank           {mae.num_frames} frames × {mae.num_bins} bins: {rows} × {columns} patches × {mae.embed_dim}",
        "LOA             " + ", ".join(f"λ={k}: {num_loa_vectors(mae, k)}" for k in (1, 2, 4, 8) if rows >= k)
        + f" vectors; generation takes λ={mae.pooling}"
        + ("" if mae.speech_pooling is None else f", of speech λ={mae.speech_pooling}"),
        "",
        "# parameters",
    ]  # fmt: skip
    lines += [f"{name:<24}{num_parameters(network) / 1e6:10.2f} M" for name, network in networks.items()]
    if experiment.adapter is not None:
        lines += [f"{'adapter in ' + stage.name:<24}{num_trained(stage) / 1e6:10.2f} M" for stage in stages]
    lines += [f"{name:<24}{source:>12}" for name, source in pretrained_of(experiment).items()]
    left_out = [f"weights of {name} ({source})" for name, source in pretrained_of(experiment).items()]
    left_out += ["activations of CLAP, T5, phonemes and GPT-2", "cached features"]
    lines += ["", "# training memory, estimated, on each device: weights, gradients, Adam's averages, EMA, activations"]
    lines += [f"# not counted: {'; '.join(left_out)}"]
    for stage in stages:
        config, memory = stage.config, training_memory(experiment, stage)
        lines.append(f"{stage.name:<10}{config.batches:>10,} batches of {config.batch_size:<4}{memory:8.2f} GiB")
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
