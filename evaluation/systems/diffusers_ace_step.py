"""diffusers' ACE-Step 1.5: music, in stereo.

Letters: T samples.
"""

from torch import Tensor

from .pipelines import open_pipeline, waveforms
from .system import Opener, Request, Settings, System, one_by_one


def open_ace_step(source: str, device: str, settings: Settings) -> System:
    pipeline = open_pipeline("AceStepPipeline", source, device)

    def make(request: Request, seconds: float) -> Tensor:
        """Waveform (2, T)"""
        return waveforms(pipeline, [request], settings, audio_duration=seconds)[0]

    # its transformer attends to the padding of a batch's shorter prompts
    return System(pipeline.sample_rate, one_by_one(make))


ACE_STEP = Opener(
    "ace-step",
    open_ace_step,
    "diffusers",
    {"num_inference_steps": int, "guidance_scale": float, "shift": float, "lyrics": str},
)
