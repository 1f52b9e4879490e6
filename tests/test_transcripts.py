"""Transcripts of any length: how they are parted, and how the parts continue each other."""

from dataclasses import dataclass

import pytest
import torch

from audioldm2_pl.transcripts import pieces_of, trimmed

pytest.importorskip("phonemizer")


@dataclass
class Letters:
    """Counts letters for phonemes."""

    def count_phonemes(self, text: str) -> int:
        return len(text)


def test_transcripts_part_at_sentences_then_clauses_then_words():
    text = "It rains. The wind howls, and a bell rings far away! Supercalifragilistic words stay whole."
    pieces = pieces_of(Letters(), text, 20)
    assert " ".join(pieces) == text
    assert pieces[:3] == ["It rains.", "The wind howls,", "and"]
    assert all(len(piece) <= 20 or " " not in piece for piece in pieces)
    assert pieces_of(Letters(), text, 60) == text.replace("! ", "!|").replace(". ", ".|").split("|")


def test_silence_after_a_part_is_cut_but_for_a_pause():
    sound = torch.cat([torch.rand(8_000) - 0.5, 1e-4 * torch.rand(24_000)])
    assert len(trimmed(sound, 16_000)) == 8_000 + 2_400
    assert len(trimmed(torch.zeros(1_000), 16_000)) == 1_000
    assert torch.equal(trimmed(sound[:8_000], 16_000), sound[:8_000])
