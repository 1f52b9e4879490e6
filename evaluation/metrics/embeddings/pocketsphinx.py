"""CMU PocketSphinx, whose wheel holds a model of US English: the text of speech without any download. Far weaker than
Whisper: its word error rate tells systems apart, and is no number to print beside Whisper's."""

from pathlib import Path

import numpy as np

from audioldm2_pl.audio import load_waveform

from ...checkpoints import digests
from ...libraries import import_library
from .backend import Backend, Embedder

RATE = 16_000  # Hz
FILES = ("cmudict-en-us.dict", "en-us.lm.bin", "en-us/mdef", "en-us/means", "en-us/variances", "en-us/sendump")


def load_pocketsphinx(path: Path, device: str) -> Embedder:
    decoder = import_library("pocketsphinx").Decoder(
        hmm=str(path / "en-us"), lm=str(path / "en-us.lm.bin"), dict=str(path / "cmudict-en-us.dict"), loglevel="FATAL"
    )

    def transcribe(paths: list[Path]) -> list[str]:
        texts = []
        for file in paths:
            samples = (np.clip(load_waveform(file, RATE), -1, 1) * 32767).astype(np.int16)
            decoder.start_utt()
            decoder.process_raw(samples.tobytes(), full_utt=True)
            decoder.end_utt()
            hypothesis = decoder.hyp()
            texts.append(hypothesis.hypstr if hypothesis else "")
        return texts

    return Embedder(RATE, transcribe=transcribe, weights=digests(path, FILES))


BACKEND = Backend(load=load_pocketsphinx, gives=frozenset({"transcripts"}), package="pocketsphinx")
