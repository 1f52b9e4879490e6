"""Where clips lie, by members.bin: what the headers say, without reading them, and only where it is of the same tar."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards import reader as shard_reader
from audioldm2_pl.shards.members import MEMBERS_FILE, TWICE, MemberTable, pack
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.tar import SparseSpan
from data.index import main as index_main
from data.shards import Clip, write_shards

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 1600).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """12 clips in shards of 4, of equal sizes."""
    folder = tmp_path_factory.mktemp("corpus") / "train"
    clips = [Clip(f"clip{i:02d}", text=f"caption {i:02d}", waveform=NOISE) for i in range(12)]
    write_shards(clips, folder, clips_per_shard=4, num_workers=1)
    return folder


@pytest.fixture
def no_headers(monkeypatch):
    """Fails where the headers of a tar are gone through."""

    def refuse(*_):
        raise AssertionError("reads headers")

    monkeypatch.setattr(shard_reader, "read_members", refuse)


def edit_index(folder, change) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def texts(folder) -> list[str]:
    return [clip["text"] for clip in ShardFolder(folder).clips_without_sound()]


def test_a_block_holds_whatever_a_tar_does():
    odd = {"wav": SparseSpan(1024, 9), "0.png": (512, 3), "json": TWICE}
    plain = [("a", {"flac": (512, 7), "json": (2**41 - 512, 2**32 - 2)}), (None, {}), ("d/ä", odd)]
    for clips in (plain, [*plain, ("b", {"flac": (77, 3)})], [*plain, ("b", {"flac": (512, 2**40)})], []):
        table = MemberTable(pack(clips))
        assert list(table) == clips and table[-1:] == clips[-1:]
        assert [type(span) for _, m in table for span in m.values()] == [type(s) for _, m in clips for s in m.values()]
    many = [(f"{i:020d}", {"flac": (512 * i, 9), "json": (512 * i, 9)}) for i in range(1000)]
    assert len(pack(many)) / 1000 < 22 + 20 + 1


def test_our_shards_say_where_their_clips_lie(corpus, no_headers):
    folder = ShardFolder(corpus)
    assert texts(corpus) == [f"caption {i:02d}" for i in range(12)]
    assert np.array_equal(folder.read(1, 2)["waveform"], folder.read(0, 0)["waveform"])
    assert os.path.getsize(corpus / MEMBERS_FILE) == sum(shard["members"][1] for shard in folder.index["shards"])


def test_they_are_those_of_the_headers(corpus):
    folder = ShardFolder(corpus)
    for shard in range(3):
        assert list(folder.stored_table(shard)) == folder.find_clips(shard)  # type: ignore[arg-type]


def drop_places(folder):
    edit_index(folder, lambda index: [shard.pop("members") for shard in index["shards"]])


def damage(folder):
    content = bytearray((folder / MEMBERS_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / MEMBERS_FILE).write_bytes(content)


@pytest.mark.parametrize("change", [drop_places, damage, lambda folder: (folder / MEMBERS_FILE).write_bytes(b"x")])
def test_without_them_the_headers_are_read(change, corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "x")
    change(folder)
    assert texts(folder) == texts(corpus)


def test_a_file_that_is_gone_is_told_once(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "x")
    (folder / MEMBERS_FILE).unlink()
    with pytest.warns(UserWarning, match=rf"{folder}/members\.bin: cannot be read") as told:
        assert texts(folder) == texts(corpus)
    assert [warning.category for warning in told].count(UserWarning) == 1


def test_shards_in_each_others_place_are_read_as_they_are(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "x")
    assert (folder / "000000.tar").stat().st_size == (folder / "000001.tar").stat().st_size
    (folder / "000000.tar").rename(folder / "a")
    (folder / "000001.tar").rename(folder / "000000.tar")
    (folder / "a").rename(folder / "000001.tar")
    expected = texts(corpus)
    assert texts(folder) == expected[4:8] + expected[:4] + expected[8:]


def test_a_shard_with_more_clips_than_the_index_says_is_one_plain_line(corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "x")
    write_shards([Clip(f"c{i}", waveform=NOISE) for i in range(6)], tmp_path / "y", num_workers=1)
    shutil.copy(tmp_path / "y/000000.tar", folder / "000001.tar")
    with pytest.raises(UserError, match=rf"{folder}/000001\.tar: 6 clips where index\.json says 4"):
        ShardFolder(folder).table(1)


@pytest.mark.parametrize("place", [[1, 2], [1, 2, -3], [1, 2, "3"], 5])
def test_an_impossible_place_is_refused_at_once(place, corpus, tmp_path):
    folder = shutil.copytree(corpus, tmp_path / "x")
    edit_index(folder, lambda index: index["shards"][1].update(members=place))
    with pytest.raises(UserError, match=r"index\.json: not the index"):
        ShardFolder(folder)


def foreign_shard(path, clips) -> None:
    """A tar in pax format, with names that need a header of their own."""
    file = io.BytesIO()
    soundfile.write(file, NOISE, 16_000, format="WAV")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key in clips:
            for suffix, content in (("wav", file.getvalue()), ("json", b'{"text": "a hiss"}'), ("md", b"no member")):
                member = tarfile.TarInfo(f"./some folder/{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_other_writers_shards_get_them_too(elsewhere, tmp_path, no_headers):
    (tmp_path / "theirs").mkdir()
    for shard, clips in enumerate((["a", "ä" * 90], ["k" * 150, "b"])):
        foreign_shard(tmp_path / f"theirs/{shard}.tar", clips)
    folder = tmp_path / ("index" if elsewhere else "theirs")
    assert index_main([str(tmp_path / "theirs"), "--output", str(folder), "--workers", "1"]) == 0
    found = ShardFolder(folder)
    keys = [found.read(shard, clip)["key"] for shard in range(2) for clip in range(2)]
    assert keys == [f"some folder/{key}" for key in ("a", "ä" * 90, "k" * 150, "b")]


def test_a_writer_that_was_interrupted_goes_on_with_them(corpus, tmp_path, monkeypatch, no_headers):
    clips = [Clip(f"clip{i:02d}", text=f"caption {i:02d}", waveform=NOISE) for i in range(12)]

    def cut_off():
        yield from clips[:6]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(cut_off(), tmp_path / "x", clips_per_shard=4, num_workers=1)
    with (tmp_path / ".x.partial/x" / MEMBERS_FILE).open("ab") as file:
        file.write(b"of a shard that was not finished")
    write_shards(clips, tmp_path / "x", clips_per_shard=4, num_workers=1)
    assert texts(tmp_path / "x") == texts(corpus)
    assert (tmp_path / "x" / MEMBERS_FILE).read_bytes() == (corpus / MEMBERS_FILE).read_bytes()
