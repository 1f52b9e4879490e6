"""transformers' MusicGen (Copet et al. 2023).

Letters: C channels, T samples.
"""

from math import ceil

import torch
from torch import Tensor

from .system import Opener, Request, Settings, System, one_by_one, open_network, open_pretrained, seeded


def open_musicgen(source: str, device: str, settings: Settings) -> System:
    from transformers import MusicgenForConditionalGeneration, MusicgenProcessor  # takes seconds

    processor = open_pretrained(MusicgenProcessor, source)
    model = open_network(MusicgenForConditionalGeneration, source, device)
    codec = model.config.audio_encoder

    @torch.inference_mode()
    def make(request: Request, seconds: float) -> Tensor:
        """Waveform (C, T)"""
        inputs = processor(text=[request.caption], padding=True, return_tensors="pt").to(device)
        # each codebook begins a frame after the one before
        num_tokens = ceil(seconds * codec.frame_rate) + model.config.decoder.num_codebooks
        with seeded(request.seed, device):
            return model.generate(**inputs, max_new_tokens=num_tokens, **settings)[0]

    return System(codec.sampling_rate, one_by_one(make))


MUSICGEN = Opener(
    "musicgen", open_musicgen, "transformers", {"guidance_scale": float, "temperature": float, "top_k": int}
)
