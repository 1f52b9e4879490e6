"""Pictures and videos => arrays, and the files that requests give beside text.

Letters: F frames, H height, W width, T samples.
"""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from audioldm2_pl.audio import AudioConfig, load_waveform, prepare_clip
from audioldm2_pl.errors import UserError, reason_of
from audioldm2_pl.generation import MEDIA, Generation

PICTURES = {"png": ("PNG",), "jpg": ("JPEG",), "jpeg": ("JPEG",)}  # suffix -> Pillow's names of what it may hold
READABLE = ("PNG", "JPEG", "WEBP")  # of pictures that a request names
MAX_SIDE = 1024  # pixels; larger pictures are scaled down, for the networks read some 336
NUM_FRAMES = 16  # of a video


def decode_picture(content: bytes, formats: tuple[str, ...] = READABLE) -> np.ndarray:
    """A picture file's bytes => uint8 (H, W, 3): upright, on white where it is transparent, at most MAX_SIDE wide.

    Whatever Pillow raises means that the bytes are damaged, of no such format, or of more than
    `Image.MAX_IMAGE_PIXELS` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(BytesIO(content), formats=formats) as image:
            return to_array(image)


def to_array(image: Image.Image) -> np.ndarray:
    """A Pillow image => uint8 (H, W, 3), as `decode_picture`."""
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB"))


def read_picture(path: str | Path) -> np.ndarray:
    """A PNG, JPEG or WebP file => uint8 (H, W, 3). Raises UserError where it is missing or damaged."""
    try:
        return decode_picture(Path(path).read_bytes())
    except Exception as error:  # whatever Pillow raises on damaged bytes
        raise UserError(f"{path}: cannot be read as a picture ({reason_of(error)}); give a PNG or JPEG file") from None


def read_video(path: str | Path, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """A video => `num_frames` of its frames at even distances, the first and the last among them, uint8 (F, H, W, 3).

    Raises UserError where PyAV is not installed, or the file has no pictures.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError(f"{path}: reading it needs PyAV; install audioldm2-pl[video]") from None
    try:
        with av.open(str(path)) as container:
            total = sum(packet.pts is not None for packet in container.demux(container.streams.video[0]))
        wanted = np.linspace(0, max(0, total - 1), num_frames).round().astype(int)  # (F,)
        kept: dict[int, np.ndarray] = {}
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number in wanted:
                    kept[number] = to_array(frame.to_image())
    except (FFmpegError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as a video ({reason_of(error)})") from None
    if not kept:
        raise UserError(f"{path}: holds no pictures; give a video")
    # a damaged end has fewer frames than packets
    return np.stack([kept[min(kept, key=lambda number: abs(number - place))] for place in wanted.tolist()])


def read_sound(path: str | Path, audio: AudioConfig) -> Tensor:
    """A sound file => (T,) as training reads a clip: its first `clip_seconds`, levelled, padded with zeros."""
    waveform = load_waveform(path, audio.sample_rate)
    return torch.from_numpy(prepare_clip(waveform, audio.sample_rate, audio)).float()


def read_media(requests: Sequence[Generation], audio: AudioConfig) -> dict[str, Any]:
    """What requests give beside text, as conditioners read it: a row a request for each of MEDIA, None for nothing.

    Pictures are uint8 (H, W, 3), videos uint8 (F, H, W, 3), sounds (T,) at "sample_rate". Raises UserError where a file
    cannot be read.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "image": read_picture, "video": read_video, "audio": lambda path: read_sound(path, audio),
    }  # fmt: skip
    given = {(name, getattr(request, name)) for request in requests for name in MEDIA}
    content = {(name, path): None if path is None else readers[name](path) for name, path in given}
    rows = {name: [content[name, getattr(request, name)] for request in requests] for name in MEDIA}
    return {**rows, "sample_rate": audio.sample_rate}
