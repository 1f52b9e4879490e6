"""Sound out of the containers that libsndfile does not read: m4a, mp4, mkv, webm, through PyAV (ffmpeg as a wheel)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError

CONTAINER_SUFFIXES = {".aac", ".m4a", ".mkv", ".mp4", ".webm"}
WARM_UP_SECONDS = 0.2  # decoded before a segment and thrown away: opus and AAC need what went before


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first audio stream; UserError where PyAV is not installed, or the file has no sound."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError(f"{path}: reading it needs PyAV; install audioldm2-pl[video]") from None
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        with av.open(str(path)) as container:
            yield container, container.streams.audio[0]
    except (FFmpegError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as audio ({error})") from None


def container_seconds(path: Path) -> float:
    """How long the sound is by the file's header, or by its packets where it has none."""
    with opened(path) as (container, stream):
        if container.format.name != "aac":  # whose length is guessed by its size
            if stream.duration is not None:
                return float(stream.duration * stream.time_base)
            if container.duration is not None and not container.streams.video:
                return container.duration / 1e6
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        return float(max(ends, default=0) * stream.time_base)


def decode_segment(path: Path, start: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """All channels, float32 (T, channels), of a segment in seconds, and its sample rate in Hz.

    Raises UserError where PyAV is not installed, or the file has no sound there.
    """
    pieces: list[np.ndarray] = []
    first = 0
    with opened(path) as (container, stream):
        rate = stream.rate
        container.seek(int(max(0.0, start - WARM_UP_SECONDS) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            begins = round(float((frame.pts or 0) * frame.time_base) * rate)
            if duration is not None and begins >= (start + duration) * rate:
                break
            first = first if pieces else begins  # sample at which the first piece begins
            pieces.append(samples_of(frame))
    skip = max(0, round(start * rate) - first)
    if sum(map(len, pieces)) <= skip:
        raise UserError(f"{path}: ends before {start} s")
    num_channels = min(piece.shape[1] for piece in pieces)  # which may change within a stream
    waveform = np.concatenate([piece[:, :num_channels] for piece in pieces])[skip:]
    return (waveform if duration is None else waveform[: round(duration * rate)]), rate


def samples_of(frame) -> np.ndarray:
    """An audio frame of PyAV => float32 (T, channels) in [-1, 1]."""
    samples = frame.to_ndarray()  # (channels, T), or (1, channels · T) where channels take turns
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    scale = 1.0 if samples.dtype.kind == "f" else -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32) / scale
