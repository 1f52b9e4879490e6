"""AudioLDM 2 as this project runs it, from any folder or hub id of the published layout.

Letters: T samples.
"""

from collections.abc import Sequence

from torch import Tensor

from audioldm2_pl.generation import Generation

from .system import Opener, Request, Settings, System


def open_ours(source: str, device: str, settings: Settings) -> System:
    from audioldm2_pl.pipeline import AudioLDM2  # takes seconds

    model = AudioLDM2.from_pretrained(source, device)

    def generate(requests: Sequence[Request], seconds: float) -> list[Tensor]:
        """Waveforms (T,); a speech model speaks the captions."""
        clips = [
            Generation(r.caption, transcript=r.caption if model.needs_transcript else None, seed=r.seed)
            for r in requests
        ]
        return list(model.generate(clips, seconds=seconds, **settings))

    return System(model.sample_rate, generate)


OURS = Opener(
    "ours", open_ours, "audioldm2-pl", {"num_steps": int, "guidance_scale": float, "sampler": str, "candidates": int}
)
