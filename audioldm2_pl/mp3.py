"""MP3 files that do not tell their length. Decoders guess it by the bitrate of the first frame, which is wrong by any
factor where the bitrate varies. For libsndfile they are given the header that they lack.
"""

import io
from pathlib import Path
from typing import BinaryIO

import soundfile

BITRATES = {  # kbit/s of Layer III by index, of MPEG-1 and of MPEG-2
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)  # Hz by index, of MPEG-1
DIVISORS = {3: 1, 2: 2, 0: 4}  # of the rates, by the bits that tell the version: MPEG-1, MPEG-2, MPEG-2.5
MARKS = (b"Xing", b"Info", b"VBRI")  # in the first frame of a file that tells its length
HEAD = 1 << 16  # bytes in which the first frame has to begin
HEADER_BITRATE = 9  # index; its frames have room for the header
CUT_FRAMES = 10_000  # minutes, which a file that breaks off is said to have beyond what is there


def open_sound(source: Path | BinaryIO) -> soundfile.SoundFile:
    """An audio file, open for reading, with as many `frames` as it has, and more where it breaks off.

    Raises what soundfile does.
    """
    file = soundfile.SoundFile(source)
    if file.format != "MP3":
        return file
    if isinstance(source, Path):
        with source.open("rb") as stream:
            counted = with_length(stream)
    else:
        position = source.tell()
        source.seek(0)
        counted = with_length(source)
        source.seek(position)
    if counted is None:
        return file
    file.close()
    return soundfile.SoundFile(counted)


def with_length(file: BinaryIO) -> BinaryIO | None:
    """An MP3, from its beginning => the same with a header that tells its length; None where it has one."""
    tag = file.read(10)  # of ID3, where there is one
    size = sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0)))
    file.seek(10 + size if tag.startswith(b"ID3") else 0)
    head = file.read(HEAD)
    first = next_frame(head, 0)
    if first is None or any(mark in head[first : first + 64] for mark in MARKS):
        return None
    content = head[first:] + file.read()
    num_frames, is_cut = count_frames(content)
    return io.BytesIO(length_header(content, num_frames + CUT_FRAMES * is_cut) + content)


def frame_size(content: bytes, offset: int) -> int:
    """Bytes of the Layer III frame that begins there, 0 where none does."""
    word = int.from_bytes(content[offset : offset + 4], "big")
    version, layer, bitrate, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version not in DIVISORS or layer != 1 or bitrate in (0, 15) or rate == 3:
        return 0
    divisor = DIVISORS[version]
    num_bytes = 144 if divisor == 1 else 72  # at one bit a sample
    return num_bytes * 1000 * BITRATES[divisor == 1][bitrate] // (RATES[rate] // divisor) + (word >> 9 & 1)


def next_frame(content: bytes, offset: int) -> int | None:
    """Where the next frame that another follows begins."""
    while (offset := content.find(b"\xff", offset)) >= 0:
        size = frame_size(content, offset)
        if size and frame_size(content, offset + size):
            return offset
        offset += 1
    return None


def count_frames(content: bytes) -> tuple[int, bool]:
    """How many frames there are, and whether the last is cut off."""
    num_frames, offset = 0, 0
    while offset is not None and offset < len(content):
        if size := frame_size(content, offset):
            num_frames, offset = num_frames + 1, offset + size
        else:  # a tag at the end, or damage
            offset = next_frame(content, offset)
    return num_frames, offset is not None and offset > len(content)


def length_header(content: bytes, num_frames: int) -> bytes:
    """A frame to stand before those of `content`, which tells how many they are, as LAME's Xing header does."""
    word = int.from_bytes(content[:4], "big") & ~(0xF << 12 | 1 << 9) | HEADER_BITRATE << 12 | 1 << 16
    is_mono, is_mpeg_1 = word >> 6 & 3 == 3, DIVISORS[word >> 19 & 3] == 1
    side = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)  # bytes that a decoder expects first
    frame = word.to_bytes(4, "big") + bytes(side)
    size = frame_size(frame, 0)
    frame += b"Xing" + (3).to_bytes(4, "big") + num_frames.to_bytes(4, "big") + (size + len(content)).to_bytes(4, "big")
    return frame + bytes(size - len(frame))
