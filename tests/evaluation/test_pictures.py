import struct
import zlib
from xml.etree import ElementTree

import numpy as np

from evaluation.pictures import MAX_COLUMNS, log_mel_png, loss_chart, palette, png


def chunks_of(content: bytes) -> dict[bytes, bytes]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        name, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(name + data)
        chunks[name] = data
        place += 12 + length
    return chunks


def test_png_decodes_to_the_levels():
    levels = np.arange(7 * 11, dtype=np.uint8).reshape(7, 11)
    chunks = chunks_of(png(levels))
    assert list(chunks) == [b"IHDR", b"PLTE", b"IDAT", b"IEND"]
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (11, 7)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(7, 12)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == levels).all()


def test_palette_grows_lighter_all_the_way():
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(luminance) >= -0.5).all() and luminance[-1] - luminance[0] > 200


def test_log_mel_has_low_frequencies_at_the_bottom():
    log_mel = np.full((2 * MAX_COLUMNS, 64), -11.5)
    log_mel[:, 0] = 0.0
    chunks = chunks_of(log_mel_png(log_mel))
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(64, MAX_COLUMNS + 1)
    assert (rows[-1, 1:] == 255).all() and (rows[:-1, 1:] == 0).all()


def test_loss_chart_is_well_formed_svg():
    curves = {"train": [(i * 10.0, 1 / (i + 1)) for i in range(5000)], "val": [(20.0, 0.5)]}
    figure = ElementTree.fromstring(loss_chart("kl <x>", curves))
    lines = figure.findall(".//polyline")
    assert [line.get("class") for line in lines] == ["train", "val"]
    assert len(lines[0].get("points", "").split()) <= 400
