"""Sound out of the containers that libsndfile does not read: m4a, mp4, mkv, webm, through PyAV (ffmpeg as a wheel)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from audioldm2_pl.errors import UserError

CONTAINER_SUFFIXES = {".aac", ".m4a", ".mkv", ".mp4", ".webm"}
LAST_FRAME_SECONDS = 0.5  # at most, of a picture that has no duration of its own
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
    """How long the sound is by the file's header, or by its packets where that does not tell; a file that breaks off is
    as long as its header promises."""
    with opened(path) as (container, stream):
        is_guess = container.format.name == "aac"  # by the file's size
        if stream.duration is not None and not is_guess:
            return float(stream.duration * stream.time_base)
        ends: dict[int, float] = {stream.index: 0.0}
        for packet in container.demux():
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
        promised = 0.0 if is_guess else (container.duration or 0) / 1e6
        is_cut = promised > max(ends.values()) + LAST_FRAME_SECONDS
        return (promised if is_cut else ends[stream.index]) - first_second(container)


def first_second(container: Any) -> float:
    """When the first of the streams begins: files that were cut without decoding may keep the recording's clock."""
    return max(0, container.start_time or 0) / 1e6


def decode_segment(path: Path, start: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """All channels, float32 (T, channels), of a segment in seconds, and its sample rate in Hz; zeros where sound begins
    later than the file.

    Raises UserError where PyAV is not installed, or the file has no sound there.
    """
    pieces: list[np.ndarray] = []
    first = 0
    with opened(path) as (container, stream):
        rate, origin = stream.rate, first_second(container)
        container.seek(int((origin + max(0.0, start - WARM_UP_SECONDS)) / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            begins = round((float((frame.pts or 0) * frame.time_base) - origin) * rate)
            if duration is not None and begins >= (start + duration) * rate:
                break
            first = first if pieces else begins  # sample at which the first piece begins
            pieces.append(samples_of(frame))
    skip = round(start * rate) - first
    if sum(map(len, pieces)) <= skip:
        raise UserError(f"{path}: ends before {start} s")
    num_channels = min(piece.shape[1] for piece in pieces)  # which may change within a stream
    waveform = np.concatenate([piece[:, :num_channels] for piece in pieces])[max(0, skip) :]
    waveform = np.pad(waveform, ((max(0, -skip), 0), (0, 0)))
    return (waveform if duration is None else waveform[: round(duration * rate)]), rate


def samples_of(frame) -> np.ndarray:
    """An audio frame of PyAV => float32 (T, channels) in [-1, 1]."""
    samples = frame.to_ndarray()  # (channels, T), or (1, channels · T) where channels take turns
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    scale = 1.0 if samples.dtype.kind == "f" else -float(np.iinfo(samples.dtype).min)
    return samples.astype(np.float32) / scale
