"""transformers' FastSpeech2Conformer (Guo et al. 2021) with its HiFi-GAN: speech, whose text is the caption.

Nothing in it is random: all seeds give one sound.

Letters: T samples.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from audioldm2_pl.errors import UserError

from .system import Opener, Request, Settings, System, one_by_one, open_network, open_pretrained

SAMPLE_RATE = 22_050  # Hz, as transformers' guide writes the published model's sound; the config has no field for it


def open_fastspeech2(source: str, device: str, settings: Settings) -> System:
    """The setting `tokenizer` is a folder or hub id that holds it, where the source does not: transformers' guide takes
    it from the model without a HiFi-GAN."""
    from transformers import FastSpeech2ConformerTokenizer, FastSpeech2ConformerWithHifiGan  # takes seconds

    if find_spec("g2p_en") is None:
        raise UserError("fastspeech2 needs the package g2p_en, which spells English in phonemes; pip install g2p-en")
    tokenizer = open_pretrained(FastSpeech2ConformerTokenizer, settings.get("tokenizer", source))
    model = open_network(FastSpeech2ConformerWithHifiGan, source, device)

    @torch.inference_mode()
    def make(request: Request, seconds: float) -> Tensor:
        """Waveform (T,), as long as the text takes"""
        inputs = tokenizer(request.caption, return_tensors="pt").to(device)
        return model(**inputs).waveform.flatten()

    return System(SAMPLE_RATE, one_by_one(make))


FASTSPEECH2 = Opener("fastspeech2", open_fastspeech2, "transformers", {"tokenizer": str})
