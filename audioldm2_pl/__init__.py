"""AudioLDM 2: train, finetune and run every stage of text-to-audio generation."""

__all__ = ["AudioLDM2", "load_experiment"]


def __getattr__(name: str):
    # torch and its friends take seconds to import; `audioldm2 --help` must not wait for them.
    if name == "AudioLDM2":
        from audioldm2_pl.pipeline import AudioLDM2

        return AudioLDM2
    if name == "load_experiment":
        from audioldm2_pl.config import load_experiment

        return load_experiment
    raise AttributeError(f"module 'audioldm2_pl' has no attribute {name!r}")
