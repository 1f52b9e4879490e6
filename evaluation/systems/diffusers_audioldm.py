"""diffusers' AudioLDM (Liu et al. 2023), AudioLDM 2 (Liu et al. 2023) and MusicLDM (Chen et al. 2023).

Letters: B clips, D width, T samples.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .pipelines import SAMPLING, open_pipeline, waveforms
from .system import Opener, Request, Settings, System, one_by_one


def open_audioldm(class_name: str, source: str, device: str, settings: Settings) -> System:
    pipeline = open_pipeline(class_name, source, device)
    if class_name == "MusicLDMPipeline":
        give_tensors(pipeline.text_encoder)

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        """Waveforms (T,)"""
        return waveforms(pipeline, requests, settings, audio_length_in_s=seconds)

    # diffusers pads AudioLDM 2's T5 to the longest prompt and counts the padding in GPT-2's positions
    alone = one_by_one(lambda request, seconds: generate([request], seconds)[0])
    batched = class_name != "AudioLDM2Pipeline"
    return System(pipeline.vocoder.config.sampling_rate, generate if batched else alone)


def give_tensors(clap: Any) -> None:
    """MusicLDM's pipeline wants CLAP's embedding (B, D) itself; since transformers 5 an object holds it."""
    embed = clap.get_text_features

    def get_text_features(*arguments: Any, **options: Any) -> Tensor:
        found = embed(*arguments, **options)
        return getattr(found, "pooler_output", found)

    clap.get_text_features = get_text_features


AUDIOLDM = Opener("audioldm", partial(open_audioldm, "AudioLDMPipeline"), "diffusers", SAMPLING)
AUDIOLDM2 = Opener("audioldm2", partial(open_audioldm, "AudioLDM2Pipeline"), "diffusers", SAMPLING)
MUSICLDM = Opener("musicldm", partial(open_audioldm, "MusicLDMPipeline"), "diffusers", SAMPLING)
