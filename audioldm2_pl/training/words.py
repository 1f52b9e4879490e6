"""What reads the words for a stage: T5 a prompt, the phoneme encoder a transcript.

An encoder with a past (pretrained, or given by `from:`) is frozen. One without learns in every stage that reads it:
what the diffusion loss alone asks of a text is little where AudioMAE's LOA tells the rest, and not the order of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from audioldm2_pl.conditioners.phonemes import PhonemeEncoder
from audioldm2_pl.conditioners.t5 import T5

if TYPE_CHECKING:
    from audioldm2_pl.training.stage import Stage

WORDS = ("t5", "phonemes")  # what an encoder of words is called in a stage


def take_words(stage: Stage, anew: bool = False) -> T5 | PhonemeEncoder:
    """Gives the stage its `t5`, or for speech its `phonemes`: the model folder's.

    Where the folder has none, or with `anew`, an encoder without a past starts at random.
    """
    conditioners, folder = stage.experiment.conditioners, stage.folder
    in_folder = folder.has("text_encoder_2") and not anew
    if conditioners.phonemes is not None:
        stage.phonemes = folder.words() if in_folder else PhonemeEncoder.build(conditioners.phonemes)
        return stage.phonemes
    if conditioners.t5.pretrained is not None or folder.is_given("t5"):
        stage.freeze(t5=folder.words())
        return stage.frozen["t5"]  # type: ignore[return-value]
    stage.t5 = folder.words() if in_folder else T5.build(conditioners.t5)  # type: ignore[assignment]
    return stage.t5  # type: ignore[return-value]


def learning_words(stage: Stage) -> dict[str, T5 | PhonemeEncoder]:
    """The encoder of the words by its name in the stage, if it learns there."""
    return {name: getattr(stage, name) for name in WORDS if hasattr(stage, name)}


def words_parts(stage: Stage) -> dict[str, Any]:
    """What a stage writes of an encoder that learns."""
    parts: dict[str, Any] = {}
    for encoder in learning_words(stage).values():
        parts |= {"text_encoder_2": encoder.model, "tokenizer_2": encoder.tokenizer}
    return parts
