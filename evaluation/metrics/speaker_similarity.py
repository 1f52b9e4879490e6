"""Speaker similarity: the cosine of two recordings' speaker embeddings, a generated clip's and its reference's.

Whether a voice was kept, as in zero-shot text-to-speech (Jia et al. 2018, arXiv:1806.04558). Values of different
networks cannot be compared, and clips of different speakers are not at 0: score some beside.

Shapes: N clips, D embedding size.
"""

from .clap import cosines
from .metric import Material, Measured, Metric


def compute_speaker_similarity(material: Material, settings: object) -> Measured:
    """(N, D) of both sides, the mean over a clip's windows, => (N,)"""
    per_clip = cosines(material.generated.embeddings.clip_means(), material.reference.embeddings.clip_means())
    return Measured({"values": per_clip}, per_clip)


SPEAKER_SIMILARITY = Metric(
    name="speaker_similarity",
    title="Speaker similarity",
    unit="cosine",
    higher_is_better=True,
    reads=frozenset({"embeddings", "speakers"}),
    needs="reference",
    compute=compute_speaker_similarity,
    range=(-1.0, 1.0),
)
