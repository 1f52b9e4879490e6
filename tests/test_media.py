"""Pictures and videos: what is read, what is refused, and where a request's files go."""

import builtins
import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.generation import Generation, check_media, requests_of
from audioldm2_pl.media import MAX_SIDE, decode_picture, read_media, read_picture, read_video


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_video(path, levels, side: int = 32):
    """A video whose frames are grey, one level each."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_pictures_are_upright_on_white_and_no_larger_than_needed():
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    assert (decode_picture(encoded(clear)) == 255).all()
    palette = Image.new("P", (4, 2), 0)
    assert decode_picture(encoded(palette)).shape == (2, 4, 3)
    turned = Image.new("RGB", (4, 2))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held a quarter turn to the left
    upright = decode_picture(encoded(turned, exif=exif))
    assert upright.shape == (4, 2, 3) and upright[0, 1].tolist() == [255, 255, 255]
    assert max(decode_picture(encoded(Image.new("L", (3000, 10)), "JPEG")).shape) == MAX_SIDE


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(Image.new("1", (200, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # a warning of Pillow's up to twice that
    with pytest.raises(Image.DecompressionBombWarning):
        decode_picture(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        decode_picture(bomb)


def test_files_that_are_no_pictures_are_plain_errors(tmp_path):
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    bad = {"cut.png": whole[:-200], "text.png": b"no picture", "other.png": encoded(Image.new("L", (4, 4)), "TIFF")}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a picture") as raised:
            read_picture(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_frames_of_a_video_are_evenly_spaced(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(0, 250, 10))
    frames = read_video(path, num_frames=5)
    assert frames.shape == (5, 32, 32, 3) and frames.dtype == np.uint8
    assert frames.mean((1, 2, 3)) == pytest.approx([0, 60, 120, 180, 240], abs=4)
    short = read_video(write_video(tmp_path / "b.mp4", [100, 200]), num_frames=4)
    assert short.mean((1, 2, 3)) == pytest.approx([100, 100, 200, 200], abs=4)


def test_what_is_no_video_is_a_plain_error(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    for name in ("a.wav", "b.mp4"):
        with pytest.raises(UserError, match="cannot be read as a video") as raised:
            read_video(tmp_path / name)
        assert "\n" not in str(raised.value)

    imported = builtins.__import__

    def without_av(name, *rest):
        if name.partition(".")[0] == "av":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(UserError, match=r"install audioldm2-pl\[video\]"):
        read_video(tmp_path / "b.mp4")


def test_each_request_has_a_row(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "red.png")
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(8_000)), 8_000)
    requests = requests_of(["", "rain", ""], {"image": [tmp_path / "red.png", None, None],
                                              "audio": [None, None, tmp_path / "tone.wav"]})  # fmt: skip
    media = read_media(requests, AudioConfig(clip_seconds=2.0))
    assert media["image"][0].shape == (4, 6, 3) and media["image"][1:] == [None, None]
    assert media["video"] == [None] * 3 and media["audio"][:2] == [None, None]
    sound = media["audio"][2]
    assert sound.dtype == torch.float32 and len(sound) == 32_000 and media["sample_rate"] == 16_000
    assert sound.abs().max() == pytest.approx(0.5, abs=0.01) and not sound[16_000:].any()  # as a training clip


def test_requests_that_no_model_reads_are_plain_errors(tmp_path):
    file = tmp_path / "a.png"
    with pytest.raises(UserError, match=r"a\.png: no such file"):
        requests_of("", {"image": file})
    file.touch()
    with pytest.raises(UserError, match="image and audio; give one of them"):
        requests_of("", {"image": file, "audio": file})
    with pytest.raises(UserError, match="prompt 1 is empty"):
        requests_of("", {})
    with pytest.raises(UserError, match="this model reads no image"):
        check_media([Generation("", image=str(file))], [])
