"""Requests => what the T-UNet reads of them: conditions, LOA and what guidance is against.

Letters: B clips, L vectors of a condition, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audioldm2_pl import generation
from audioldm2_pl.conditioners.condition import Condition, warn_unread
from audioldm2_pl.editing import NO_EDIT, Edit
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, Sampling
from audioldm2_pl.media import read_media
from audioldm2_pl.models.guidance import UNetInputs


def check_readable(model: Any, requests: Sequence[Generation], loa: Tensor | None = None, edit: Edit = NO_EDIT) -> None:
    """UserError where an AudioLDM2 does not read what is given; warns of what no encoder reads of a text.

    `loa` (B, L, D) is given in GPT-2's place.
    """
    generation.check_transcripts(requests, model.reads_transcripts, model.needs_transcript)
    generation.check_media(requests, model.conditioners.values())
    num_given = (loa is not None) + (edit.loa_prefix is not None or edit.loa_suffix is not None)
    if num_given and not model.uses_loa:
        raise UserError("this model reads no LOA; leave it out")
    if num_given == 2:
        raise UserError("loa and edit.loa_prefix: give one of them; GPT-2 continues nothing where LOA is given")
    edit.check(len(requests), model)
    warn_unread(model.conditioners.values(), generation.texts_of(requests))


def encode_requests(model: Any, requests: Sequence[Generation], sampling: Sampling, edit: Edit = NO_EDIT,
                    loa: Tensor | None = None) -> UNetInputs:  # fmt: skip
    """Requests => what an AudioLDM2's T-UNet reads of them, one row each. `loa` (B, L, D) replaces GPT-2's."""
    texts = [r.prompt for r in requests], [r.transcript or "" for r in requests]
    conditions = model.encode_conditions(*texts, read_media(requests, model.audio))
    if model.uses_loa:
        speaks = bool(requests[0].transcript)
        given = model.generate_loa(conditions, edit.loa_prefix, speaks) if loa is None else loa.to(model.device)
        if edit.loa_suffix is not None:
            suffix = edit.loa_suffix.to(given).expand(len(given), -1, -1)
            given = torch.cat([given[:, : given.shape[1] - suffix.shape[1]], suffix], dim=1)
        check_finite(given, "LOA", "the weights in language_model/, or what it reads, are damaged")
        conditions["loa"] = Condition.of(given.to(model.dtype))
    return guided_inputs(model, conditions, [r.negative_prompt for r in requests], sampling)


def guided_inputs(
    model: Any, conditions: Mapping[str, Condition], negative_prompts: Sequence[str], sampling: Sampling
) -> UNetInputs:
    """Named conditions (B, L, D), LOA among them, as the T-UNet reads them, and what guidance is against.

    That is each negative prompt and zero LOA, as in training's condition dropout, or with `unconditional="gpt2"`
    the LOA that GPT-2 generates for the negative prompt, as in diffusers.
    """
    inputs = UNetInputs.of(model.unet.config, conditions)
    if sampling.guidance_scale != 1.0:
        negatives = list(negative_prompts if len(set(negative_prompts)) > 1 else negative_prompts[:1])
        without = model.encode_conditions(negatives)
        if model.uses_loa:
            zeros = torch.zeros_like(conditions["loa"].embedding[:1])
            loa = model.generate_loa(without) if sampling.unconditional == "gpt2" else zeros
            without["loa"] = Condition.of(loa)
        num_rows = len(next(iter(conditions.values())))
        read = {name: condition.expand(num_rows) for name, condition in without.items()}
        inputs.unconditional = UNetInputs.of(model.unet.config, read)
    return inputs


def check_finite(values: Tensor, what: str, cause: str) -> None:
    """UserError where a tensor of any shape, such as LOA (B, L, D), is not finite."""
    if not torch.isfinite(values).all():
        raise UserError(f"{what} is not finite: {cause}")
