"""diffusers' Stable Audio Open (Evans et al. 2024) and Stable Audio 3, in stereo.

Letters: T samples.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .pipelines import SAMPLING, open_pipeline, waveforms
from .system import Opener, Request, Settings, System


def open_stable_audio(class_name: str, length: str, source: str, device: str, settings: Settings) -> System:
    """`length`: what the pipeline calls the seconds of a clip."""
    pipeline = open_pipeline(class_name, source, device)

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        """Waveforms (2, T)"""
        return waveforms(pipeline, requests, settings, **{length: seconds})

    return System(pipeline.vae.config.sampling_rate, generate)


STABLE_AUDIO = Opener(
    "stable-audio", partial(open_stable_audio, "StableAudioPipeline", "audio_end_in_s"), "diffusers", SAMPLING
)
STABLE_AUDIO_3 = Opener(
    "stable-audio-3", partial(open_stable_audio, "StableAudio3Pipeline", "duration"), "diffusers", SAMPLING
)
