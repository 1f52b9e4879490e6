"""Audio quality by two prompts, PAM's way (Deshmukh et al. 2024, arXiv:2402.00282), with LAION's CLAP in place of
Microsoft's: another network, so another quantity than the paper's PAM, and called another name.

A window's score is the probability of the first prompt among the two; a clip's, the mean over its windows.

Shapes: R windows, D embedding size.
"""

import numpy as np

from .clap import cosines
from .kl import log_softmax
from .metric import ClipFeatures, Material, Measured, Metric

PROMPTS = ("the sound is clear and clean.", "the sound is noisy and with artifacts.")


def probability_of_first(audio: np.ndarray, prompts: np.ndarray, logit_scale: float) -> np.ndarray:
    """Embeddings (R, D) of windows, (2, D) of the prompts => (R,), in [0, 1]"""
    similarity = np.stack([cosines(audio, np.broadcast_to(prompt, audio.shape)) for prompt in prompts], axis=1)
    return np.exp(log_softmax(logit_scale * similarity))[:, 0]


def compute_pam(material: Material, settings: object) -> Measured:
    assert material.prompt_embeddings is not None and material.logit_scale is not None
    embeddings: ClipFeatures = material.generated.embeddings
    scores = probability_of_first(embeddings.rows, material.prompt_embeddings[:2], material.logit_scale)
    per_clip = ClipFeatures(scores[:, None], embeddings.counts).clip_means()[:, 0]
    return Measured({"values": per_clip}, per_clip, {"prompts": list(PROMPTS)})


PAM_LAION = Metric(
    name="pam_laion",
    title="Prompted quality (PAM's prompts, LAION's CLAP)",
    unit="probability",
    higher_is_better=True,
    reads=frozenset({"embeddings", "prompt_embeddings"}),
    needs=None,
    compute=compute_pam,
    range=(0.0, 1.0),
    prompts=PROMPTS,
)
