"""An adapter in training: low-rank layers over the frozen networks of a stage, and the folder that it is saved to.

runs/<name>/model      links to the base model's files
runs/<name>/adapter    unet/ and language_model/, the result
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.conditioners.config import CONDITIONS
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.models.adapters import (
    PARTS,
    WEIGHTS_NAME,
    AdapterConfig,
    network_of,
    new_adapter,
    read_adapter,
    save_adapter,
    set_weights,
)
from audioldm2_pl.training.stage import Stage
from audioldm2_pl.weights import digest_of_weights


class AdapterFolder(ModelFolder):
    """Where the stages of a run that trains an adapter write, over the parts of the model folder `base`."""

    def __init__(self, path: Path, base: ModelFolder):
        super().__init__(path)
        self.base = base

    def write_part(self, part: str, content: Any, folder: Path) -> None:
        name = next(name for name, of in PARTS.items() if of == part)
        save_adapter(content, folder, str(self.base.started[name]), digest_of_weights(self.base.path / part))

    def write_index(self) -> None:
        """An adapter has none."""

    def note_sampling(self, sampling: Any) -> None:
        """The base model's holds."""


def output_folder(experiment: Any, folder: ModelFolder) -> ModelFolder:
    """Where the stages write: the model folder, or where they train an adapter a folder beside it."""
    return folder if experiment.adapter is None else AdapterFolder(experiment.adapter_folder, folder)


def adapted_networks(stage: Stage | type[Stage], config: AdapterConfig) -> list[str]:
    """Those of the config's networks that a stage trains."""
    return [name for name in config.networks if name in stage.adapts]


def adapt(stage: Stage, config: AdapterConfig, start: Path | None = None) -> None:
    """Freezes all that a stage trains; low-rank layers take its place in the optimiser, the EMA and the checkpoint.

    They go on from the adapter in the folder `start`, where there is one.
    """
    stage.requires_grad_(False)
    for name in adapted_networks(stage, config):
        network = stage.get_submodule(stage.adapts[name])
        new_adapter(network, name, config)
        if start is not None and (file := start / PARTS[name] / WEIGHTS_NAME).is_file():
            adapter = read_adapter(file)
            set_weights(network_of(adapter, [network]), adapter)
    stage.saved = tuple(PARTS[name] for name in adapted_networks(stage, config))
    stage.strict_loading = False
    stage.register_state_dict_post_hook(leave_out_frozen)


def leave_out_frozen(stage: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    learned = {prefix + name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    for name in state.keys() - learned:
        del state[name]


def check_adapter(experiment: Any, stages: Sequence[type[Stage]]) -> None:
    """Raises UserError where one of the stages has nothing to adapt, or would train more than the adapter."""
    config: AdapterConfig = experiment.adapter
    for stage in stages:
        if stage.makes in experiment.from_:
            continue
        if not (chosen := adapted_networks(stage, config)):
            raise UserError(
                f"stages: {stage.name} trains none of adapter.networks={config.networks}; leave it out, or name what "
                "it makes in `from:`"
            )
        if missing := [network for network in chosen if network not in experiment.start_from]:
            raise UserError(
                f"adapter: nothing to adapt; name the base model in `start_from: {{{missing[0]}: …}}`, a model folder "
                "or hub id"
            )
        if new := [group for group in stage.writes(experiment) if group in CONDITIONS]:
            raise UserError(f"adapter: {stage.name} would train {new[0]}; name in `from:` where the base model's is")
    check_rank(experiment)
    if any(Path(source).resolve() == experiment.model_folder.resolve() for source in experiment.start_from.values()):
        raise UserError(f"adapter: {experiment.model_folder} is the base model itself; give this run another `name`")


def check_rank(experiment: Any) -> None:
    unet, rank = experiment.unet, experiment.adapter.rank
    levels = {*unet.attention_levels, len(unet.block_out_channels) - 1}  # that in the middle always attends
    widths = {
        "unet": ("unet.block_out_channels", min(unet.block_out_channels[level] for level in levels)),
        "gpt2": ("gpt2.hidden_size", experiment.gpt2.hidden_size),
    }
    for name in experiment.adapter.networks:
        key, width = widths[name]
        if rank > width:
            raise UserError(f"adapter.rank={rank} is above the width {width} that {key} gives; take a lower rank")
