"""Text to sound by the ONNX files that `onnx_export.py` writes, run by onnxruntime.

Letters: B prompts, L vectors of a condition, D width, C × H × W latent, F frames, M mel bins, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.audio import AudioConfig, limit_peak
from audioldm2_pl.conditioners.condition import Condition
from audioldm2_pl.conditioners.tokenizers import tokenize
from audioldm2_pl.conditioning import guided_inputs
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Sampling, check_sampling
from audioldm2_pl.hub.onnx_export import MANIFEST, check_libraries
from audioldm2_pl.models.diffusion import Predict, draw_noise, guide, sample
from audioldm2_pl.models.guidance import UNetInputs
from audioldm2_pl.windows import frames_over


class ONNXModel:
    """An export, open for generation: prompts => sounds of one window, as `AudioLDM2.generate` makes them.

    >>> model = ONNXModel("runs/demo/onnx")
    >>> waveform = model.generate(["a bell rings"])  # (1, T) at model.sample_rate
    """

    def __init__(self, folder: str | Path):
        """Raises UserError where `folder` is no export, or onnxruntime is missing."""
        check_libraries()
        import onnxruntime

        self.folder = Path(folder)
        self.manifest = read_json_object(self.folder / MANIFEST)
        try:
            parts = self.manifest["parts"]
            self.sessions = {
                name: onnxruntime.InferenceSession(str(self.folder / part["file"])) for name, part in parts.items()
            }
            self.tokenizers = {
                name: transformers.AutoTokenizer.from_pretrained(self.folder / reader["tokenizer"])
                for name, reader in self.manifest["text_encoders"].items()
            }
            self.audio = AudioConfig(**self.manifest["audio"])
            self.sampling = Sampling(**self.manifest["sampling"])
            self.unet: Any = SimpleNamespace(config=SimpleNamespace(**self.manifest["unet"]))
            scheduler = self.manifest["scheduler"]
            self.scheduler = getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
            latent = self.manifest["latent"]
            self.shape = (latent["channels"], latent["bins"])
            self.unit = self.audio.hop_length * latent["downsampling"]  # samples to one latent frame
            self.smallest_latent = latent["smallest_frames"]
        except Exception as error:
            raise UserError(f"{self.folder}: is no whole ONNX export ({error}); export the model again") from None
        self.sample_rate = self.audio.sample_rate

    def run(self, part: str, **inputs: Tensor) -> Tensor:
        """The output of a part, of the shape that onnx.json tells."""
        given = {name: value.numpy() for name, value in inputs.items()}
        return torch.from_numpy(self.sessions[part].run(None, given)[0])

    @property
    def uses_loa(self) -> bool:
        """Whether the T-UNet reads the language of audio."""
        return "loa" in self.unet.config.conditions

    def encode_conditions(self, prompts: Sequence[str]) -> dict[str, Condition]:
        """Prompts => the condition (B, L, D) of each text encoder."""
        conditions = {}
        for name, tokenizer in self.tokenizers.items():
            tokens = tokenize(tokenizer, prompts, self.manifest["text_encoders"][name]["max_tokens"])
            inputs = {key: tokens[key] for key in ("input_ids", "attention_mask")}
            embedding = self.run(f"conditioner_{name}", **inputs)
            mask = inputs["attention_mask"].bool()
            conditions[name] = Condition.of(embedding) if name == "clap" else Condition(embedding, mask)
        return conditions

    def generate_loa(self, conditions: dict[str, Condition]) -> Tensor:
        """Conditions => LOA (B, L, D): the whole sequence goes through GPT-2 for each vector."""
        gpt2 = self.manifest["gpt2"]
        inputs = named_inputs({name: conditions[name] for name in gpt2["conditions"]})
        loa = torch.zeros(len(inputs[gpt2["conditions"][0]]), gpt2["num_vectors"], gpt2["width"])
        for number in range(gpt2["num_vectors"]):
            loa[:, number] = self.run("gpt2", loa=loa[:, : number + 1], **inputs)[:, -1]
        return loa

    def predictor(self, inputs: UNetInputs, guidance_scale: float) -> Predict:
        """(noisy latent (B, C, H, W), timestep) => the guided prediction (B, C, H, W)."""
        both = inputs.with_unconditional()
        given = named_inputs(dict(zip(self.unet.config.conditions, both.conditions)))
        if both.film is not None:
            given["film"] = both.film

        def predict(latent: Tensor, timestep: Tensor) -> Tensor:
            latent = latent if both is inputs else torch.cat([latent, latent])
            prediction = self.run("unet", latent=latent, timestep=timestep.long().expand(len(latent)), **given)
            if both is inputs:
                return prediction
            without, conditional = prediction.chunk(2)
            return guide(without, conditional, guidance_scale)

        return predict

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], *, seconds: float | None = None, seed: int = 0,
                 negative_prompt: str = "", sampling: Sampling | None = None) -> Tensor:  # fmt: skip
        """Prompts => waveforms (B, T); seeds count up. Of `sampling` candidates and windows are not looked at.

        Raises UserError where the model reads more than text.
        """
        read = [*self.unet.config.conditions, *(self.manifest["gpt2"] or {}).get("conditions", ())]
        if missing := [name for name in read if name not in ("loa", *self.tokenizers)]:
            raise UserError(
                f"{self.folder}: it reads {missing[0]}, whose encoder is not exported; use the model folder"
            )
        sampling = replace(sampling or self.sampling, candidates=1)
        check_sampling(sampling, self.scheduler.config)
        num_samples = round((seconds or self.audio.clip_seconds) * self.sample_rate)
        conditions = self.encode_conditions(prompts)
        if self.uses_loa:
            conditions["loa"] = Condition.of(self.generate_loa(conditions))
        inputs = guided_inputs(self, conditions, [negative_prompt] * len(prompts), sampling)
        generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
        noise = draw_noise((self.shape[0], frames_over(self, num_samples), self.shape[1]), generators)  # (B, C, H, W)
        predict = self.predictor(inputs, sampling.guidance_scale)
        latent = sample(predict, self.scheduler, noise, generators, sampling)
        waveform = self.run("vocoder", log_mel=self.run("vae_decoder", latent=latent))
        return limit_peak(waveform[:, :num_samples], self.sample_rate)


def named_inputs(conditions: dict[str, Condition]) -> dict[str, Tensor]:
    """Each condition (B, L, D) and its mask (B, L), under the names that they have in the files."""
    masks = {f"{name}_mask": condition.mask.bool() for name, condition in conditions.items()}
    return {name: condition.embedding for name, condition in conditions.items()} | masks
