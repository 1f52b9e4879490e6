"""transformers' VITS (Kim et al. 2021) and MMS-TTS: speech, whose text is the caption.

Letters: T samples.
"""

import torch
from torch import Tensor

from .system import Opener, Request, Settings, System, one_by_one, open_network, open_pretrained, seeded


def open_vits(source: str, device: str, settings: Settings) -> System:
    from transformers import VitsModel, VitsTokenizer  # takes seconds

    from audioldm2_pl.conditioners.phonemes import prepare_espeak

    tokenizer = open_pretrained(VitsTokenizer, source)
    if tokenizer.phonemize:  # MMS-TTS reads letters
        prepare_espeak()
    model = open_network(VitsModel, source, device)

    @torch.inference_mode()
    def make(request: Request, seconds: float) -> Tensor:
        """Waveform (T,), as long as the text takes"""
        inputs = tokenizer(request.caption, return_tensors="pt").to(device)
        with seeded(request.seed, device):
            return model(**inputs, **settings).waveform[0]

    return System(model.config.sampling_rate, one_by_one(make))


VITS = Opener("vits", open_vits, "transformers", {"speaker_id": int, "speaking_rate": float})
