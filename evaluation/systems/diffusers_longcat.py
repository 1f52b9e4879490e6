"""diffusers' LongCat-AudioDiT.

Letters: T samples.
"""

from torch import Tensor

from audioldm2_pl.errors import UserError

from .pipelines import SAMPLING, open_pipeline, waveforms
from .system import Opener, Request, Settings, System, one_by_one


def open_longcat(source: str, device: str, settings: Settings) -> System:
    pipeline = open_pipeline("LongCatAudioDiTPipeline", source, device)
    one_latent = pipeline.vae_scale_factor / pipeline.sample_rate  # seconds

    def make(request: Request, seconds: float) -> Tensor:
        """Waveform (1, T)"""
        if seconds > pipeline.max_wav_duration:
            raise UserError(f"longcat makes {pipeline.max_wav_duration:g} s at most; --seconds {seconds:g} is longer")
        # the pipeline rounds down to whole latents
        return waveforms(pipeline, [request], settings, audio_duration_s=seconds + one_latent)[0]

    # in a batch the padding of shorter prompts changes the sound
    return System(pipeline.sample_rate, one_by_one(make))


LONGCAT = Opener("longcat", open_longcat, "diffusers", SAMPLING)
