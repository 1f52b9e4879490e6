"""Sound out of the containers that libsndfile does not read: m4a, mp4, mkv, webm, through PyAV (ffmpeg as a wheel)."""

from pathlib import Path

import numpy as np

from audioldm2_pl.errors import UserError

CONTAINER_SUFFIXES = {".aac", ".m4a", ".mkv", ".mp4", ".webm"}
WARM_UP_SECONDS = 0.2  # decoded before a segment and thrown away: opus and AAC need what went before


def decode_segment(path: Path, start: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """First channel, float32 (T,), of a segment in seconds, and its sample rate in Hz.

    Raises UserError where PyAV is not installed, or the file has no sound there.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError(f"{path}: reading it needs PyAV; install audioldm2-pl[video]") from None
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    pieces: list[np.ndarray] = []
    first = rate = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            container.seek(int(max(0.0, start - WARM_UP_SECONDS) / stream.time_base), stream=stream)  # type: ignore[operator]
            for frame in container.decode(stream):
                place = round(float((frame.pts or 0) * frame.time_base) * rate)
                if duration is not None and place >= (start + duration) * rate:
                    break
                first = first if pieces else place  # sample at which the first piece begins
                pieces.append(first_channel(frame))
    except (FFmpegError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None
    skip = max(0, round(start * rate) - first)
    waveform = np.concatenate(pieces)[skip:] if pieces else np.zeros(0, np.float32)
    if not len(waveform):
        raise UserError(f"{path}: ends before {start} s")
    return (waveform if duration is None else waveform[: round(duration * rate)]), rate


def first_channel(frame) -> np.ndarray:
    """An audio frame of PyAV => its first channel, float32 (T,) in [-1, 1]."""
    samples = frame.to_ndarray()  # (channels, T), or (1, channels · T) where channels take turns
    samples = samples[0, :: 1 if frame.format.is_planar else frame.layout.nb_channels]
    scale = 1.0 if samples.dtype.kind == "f" else -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32) / scale
