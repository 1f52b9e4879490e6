"""Bad clips: which are found, what comes in their place, how they are counted, and what is never run."""

import io
import itertools
import json
import os
import pickle
import re
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from audioldm2_pl.audio import AudioConfig
from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.datamodule import AudioShards, DataConfig
from audioldm2_pl.shards.encoded import EncodedFolder, members_of
from audioldm2_pl.shards.format import SOUNDS, BadClip
from audioldm2_pl.shards.quarantine import Quarantine
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.shards.stream import ClipStream
from data.shards import Clip, write_shards

torch.set_num_threads(1)
AUDIO = AudioConfig(clip_seconds=0.1)
NUM_SAMPLES = 1600
NUM_CLIPS = 8


def flac(waveform, rate: int = 16_000, kind: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=kind, subtype=subtype)
    return file.getvalue()


NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, NUM_SAMPLES).astype(np.float32)
GOOD = {"flac": flac(NOISE), "json": b'{"text": "a hiss"}'}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight clips of a tenth of a second in one shard."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("corpus") / "train"
    clips = [
        Clip(f"clip{i}", text=f"caption {i}", waveform=rng.uniform(-0.3, 0.3, NUM_SAMPLES).astype(np.float32))
        for i in range(NUM_CLIPS)
    ]
    write_shards(clips, folder, num_workers=1)
    return folder


def make_shard(folder, clips: dict[str, dict[str, bytes]], num_clips=None):
    """A folder with one shard of these members, as index.json describes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for key, members in clips.items():
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    shards = [{"name": "000000.tar", "num_clips": len(clips) if num_clips is None else num_clips}]
    index = {"format": 1, "sample_rate": 16_000, "longest_seconds": 0.1, "shards": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def stream(folder, start: int | None = 0, fraction: float = 1.0, rank: int = 0, world_size: int = 1, path=None):
    folders = [ShardFolder(folder)]
    quarantine = Quarantine(folders, fraction, path)
    return ClipStream(folders, AUDIO, NUM_SAMPLES, 0, 2, start, rank, world_size, quarantine=quarantine)


def keys(clips, count: int | None = None) -> list[str]:
    return [clip["key"] for clip in itertools.islice(clips, count)]


def damaged(content: bytes, rng: np.random.Generator) -> tuple[bytes, int, int]:
    """The content with a flipped bit, a burst of noise, zeros or a cut, and where the damage begins and ends."""
    at = int(rng.integers(len(content)))
    kind = rng.integers(4)
    if kind == 0:
        return content[:at], at, len(content)
    end = at + 1 if kind == 1 else min(len(content), at + int(rng.integers(1, 2000)))
    middle = {1: bytes([content[at] ^ 1 << int(rng.integers(8))]), 2: rng.bytes(end - at), 3: bytes(end - at)}
    return content[:at] + middle[int(kind)] + content[end:], at, end


def test_300_random_corruptions_lose_only_what_they_touch(corpus, tmp_path):
    rng = np.random.default_rng(0)
    content = (corpus / "000000.tar").read_bytes()
    whole = {clip["key"]: clip for clip in stream(corpus, None)}
    places = ShardFolder(corpus).table(0)
    folder = shutil.copytree(corpus, tmp_path / "broken")
    num_lost = 0
    for _ in range(300):
        broken, begin, end = damaged(content, rng)
        (folder / "000000.tar").write_bytes(broken)
        clips = stream(folder, None)
        delivered = {clip["key"]: clip for clip in clips}
        assert len(delivered) + len(clips.quarantine.bad) == NUM_CLIPS
        num_lost += len(clips.quarantine.bad)
        for key, members in places:
            first = min(offset for offset, _ in members.values()) - 512
            last = max(offset + size for offset, size in members.values())
            if end <= first or last <= begin:
                assert key in delivered
            if key in delivered:
                assert torch.equal(delivered[key]["waveform"], whole[key]["waveform"])
    assert num_lost > 200


def test_lost_bytes_are_accounted_for(corpus, tmp_path):
    content = (corpus / "000000.tar").read_bytes()
    folder = shutil.copytree(corpus, tmp_path / "broken")
    for at in range(100, len(content), 3000):  # all that follows lies off the tar's blocks
        (folder / "000000.tar").write_bytes(content[:at] + content[at + 77 :])
        clips = stream(folder, None)
        assert len(keys(clips)) + len(clips.quarantine.bad) == NUM_CLIPS


BAD = {
    "NaN or infinite samples": {"wav": flac(NOISE * np.nan, kind="WAV", subtype="FLOAT"), "json": GOOD["json"]},
    "no samples": {"wav": flac(NOISE[:0], kind="WAV"), "json": GOOD["json"]},
    "wrong rate (8000 Hz where index.json says 16000)": {"flac": flac(NOISE[:800], 8000), "json": GOOD["json"]},
    "damaged flac (0.20 s, longer than index.json says)": {"flac": flac(np.tile(NOISE, 2)), "json": GOOD["json"]},
    "damaged flac (holds OGG)": {"flac": flac(NOISE, kind="OGG", subtype="VORBIS"), "json": GOOD["json"]},
    "empty caption": {**GOOD, "json": b'{"text": "  "}'},
    "caption that is no text": {**GOOD, "json": b'{"captions": ["a", 3]}'},
    "damaged json (no fields of a clip)": {**GOOD, "json": b"[1]"},
    "caption that is no text ": {**GOOD, "json": b'{"text": "a \\ud800"}'},
    "transcript that is no text": {**GOOD, "json": b'{"text": "a", "transcript": 3}'},
    "damaged wav (a rate of 2000000000 Hz)": {"wav": flac(NOISE, 2_000_000_000, "WAV"), "json": GOOD["json"]},
    "damaged json (maximum recursion depth exceeded": {**GOOD, "json": b"[" * 100_000},
    "silent": {**GOOD, "flac": flac(np.full(NUM_SAMPLES, 0.2))},
    "no sound member": {"json": GOOD["json"]},
    "no json member": {"flac": GOOD["flac"]},
}


@pytest.mark.parametrize("reason", BAD)
def test_each_kind_of_bad_clip_is_named(reason, tmp_path):
    folder = make_shard(tmp_path / "x", {"good": GOOD, "bad": BAD[reason]})
    clips = stream(folder, None)
    assert keys(clips) == ["good"]
    (found,) = clips.quarantine.bad.values()
    assert found.startswith(reason.strip())
    if reason != "silent":  # which evaluation hears
        with pytest.raises(UserError, match=f"{folder}/000000.tar: clip bad cannot be read"):
            ShardFolder(folder).read(0, 1)


@pytest.mark.parametrize("json", [b'{"captions": ["", "a hiss"]}', b'{"text": "a hiss"}'])
def test_blank_captions_are_not_drawn(json, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": {**GOOD, "json": json}})
    assert {clip["text"] for clip in itertools.islice(stream(folder), 20)} == {"a hiss"}


def test_a_txt_member_is_the_caption_and_an_array_a_field(tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    members = {"wav": flac(NOISE, kind="WAV"), "txt": b"a hiss\n", "latent.npy": array.getvalue()}
    clip = ShardFolder(make_shard(tmp_path / "x", {"a": members})).read(0, 0)
    assert clip["text"] == "a hiss" and clip["latent"].tolist() == [0, 1, 2] and len(clip["waveform"]) == NUM_SAMPLES


def webdataset_keys(folder) -> list[str]:
    """As webdataset names the clips that have sound; "./a" is the same as "a"."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    with (folder / "000000.tar").open("rb") as file:
        samples = list(group_by_keys(tar_file_expander([{"url": "x", "stream": file}])))
    return [s["__key__"].removeprefix("./") for s in samples if any(suffix in s for suffix in SOUNDS)]


@pytest.mark.parametrize("name", ["./a", "v1.0/a", "./d/v.2/a", "A b", "ä"])
@pytest.mark.parametrize("suffix", ["flac", "FLAC", "wav", "mp3", "ogg"])
def test_members_are_named_as_webdataset_names_them(name, suffix, tmp_path):
    kind = suffix.upper()
    sound = flac(NOISE, kind=kind, subtype={"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(kind, "PCM_16"))
    clips = {name: {suffix: sound, "JSON": b'{"text": "a hiss"}'}, "d/._a": {"flac": b"", "json": b""}}
    folder = make_shard(tmp_path / "x", clips, num_clips=1)
    assert keys(stream(folder, None)) == webdataset_keys(folder) == [name.removeprefix("./")]


def test_a_key_leads_out_of_no_folder(tmp_path):
    folder = make_shard(tmp_path / "x", {"../../a": GOOD, "/etc/b": GOOD})
    assert keys(stream(folder, None)) == ["a", "etc/b"]


def test_a_list_under_text_is_captions(tmp_path):
    folder = make_shard(tmp_path / "x", {"a": {**GOOD, "json": b'{"text": ["one", "two"]}'}})
    assert {clip["text"] for clip in itertools.islice(stream(folder), 20)} == {"one", "two"}


@pytest.mark.parametrize("name", ["caption", "Text", "description"])
def test_a_caption_of_another_name_is_told_once(name, tmp_path):
    clips = {key: {**GOOD, "json": json.dumps({name: "a hiss"}).encode()} for key in "abc"}
    folder = make_shard(tmp_path / "x", clips)
    with pytest.warns(UserWarning, match=rf"{folder}: .*'{name}'") as told:
        assert [clip["text"] for clip in stream(folder, None)] == [""] * 3
    assert len({str(warning.message) for warning in told if warning.category is UserWarning}) == 1


@pytest.mark.parametrize("name", ["features", "key", "id", "waveform", "sample_rate"])
def test_a_field_of_the_readers_own_changes_nothing(name, tmp_path):
    array = io.BytesIO()
    np.save(array, np.arange(3))
    fields = json.dumps({"text": "a hiss", name: [1, 2]}).encode()
    odd = {**GOOD, "json": fields, f"{name}.npy": array.getvalue(), "text.npy": array.getvalue()}
    plain, found = (next(iter(stream(make_shard(tmp_path / x, {"a": c}), None))) for x, c in (("x", GOOD), ("y", odd)))
    assert torch.equal(plain.pop("waveform"), found.pop("waveform")) and plain == found


def test_whatever_goes_wrong_after_loading_leaves_the_clip_out(tmp_path, monkeypatch):
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": GOOD, "c": GOOD})
    clips = stream(folder, None)
    drawn = clips.drawn
    monkeypatch.setattr(clips, "drawn", lambda clip, position: drawn({} if clip["key"] == "b" else clip, position))
    assert keys(clips) == ["a", "c"] and "no clip to train on" in str(clips.quarantine.bad)


def test_a_negative_size_in_a_header_ends(tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": GOOD})
    content = bytearray((folder / "000000.tar").read_bytes())
    content[124:136] = b"-0000001000\0"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 8 * 32)
    (folder / "000000.tar").write_bytes(content)
    assert keys(stream(folder, None)) == ["b"]


@pytest.mark.parametrize("count", [-5, 10**12, True, 2.0, "3"])
def test_an_impossible_count_is_refused_at_once(count, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD}, num_clips=count)
    with pytest.raises(UserError, match=r"index\.json.*000000\.tar"):
        ShardFolder(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 2 * 10**9}, {"sample_rate": "x"}, {"longest_seconds": -1}, {"num_clips": "3"},
        {"skipped": "/etc/passwd"}, {"changed": [{"key": "a"}]}, {"skipped": 5},
    ],
)  # fmt: skip
def test_an_impossible_index_is_refused_at_once(change, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD})
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(folder)
    (folder / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(folder)


def test_a_pipe_in_place_of_a_shard_is_refused(tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD})
    (folder / "000000.tar").unlink()
    os.mkfifo(folder / "000000.tar")
    with pytest.raises(UserError, match=r"000000\.tar: cannot be read \(no regular file\)"):
        keys(stream(folder, None))


def test_a_list_that_cannot_be_written_is_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    quarantine = Quarantine([ShardFolder(corpus)], 0.5, tmp_path / "file" / "quarantine.jsonl")
    with pytest.raises(UserError, match=r"quarantine\.jsonl: a bad clip cannot be listed"):
        quarantine.add(ShardFolder(corpus), 0, 2, BadClip("a", "no samples"))


def test_long_keys_are_read(tmp_path):
    clips = {"k" * 150 + str(i): GOOD for i in range(3)}  # the tar puts such names into headers of their own
    assert keys(stream(make_shard(tmp_path / "x", clips), None)) == list(clips)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "pt", "PKL", "pickle.gz"])
def test_a_shard_with_pickles_is_refused_by_name(suffix, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": {**GOOD, suffix: pickle.dumps(Payload(tmp_path / "ran"))}})
    with pytest.raises(UserError, match=rf"{folder}/000000\.tar: carries b\.{suffix}"):
        keys(stream(folder, None))
    assert not (tmp_path / "ran").exists()


def test_an_array_of_pickles_runs_no_code(tmp_path):
    array = io.BytesIO()
    np.save(array, np.array([Payload(tmp_path / "ran")]), allow_pickle=True)
    folder = make_shard(tmp_path / "x", {"a": GOOD, "b": {**GOOD, "loa.npy": array.getvalue()}})
    clips = stream(folder, None)
    assert keys(clips) == ["a"] and "damaged loa.npy" in str(clips.quarantine.bad)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../000000.tar", "/etc/passwd", "a/b.tar", ".hidden"])
def test_an_index_points_to_its_own_folder_only(name, tmp_path):
    folder = make_shard(tmp_path / "x", {"a": GOOD})
    (folder / "index.json").write_text(json.dumps({"format": 1, "shards": [{"name": name, "num_clips": 1}]}))
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(folder)


@pytest.fixture
def half_bad(corpus, tmp_path):
    """The corpus with its second half cut off, and a clip without a caption."""
    folder = shutil.copytree(corpus, tmp_path / "half")
    content = (corpus / "000000.tar").read_bytes()
    content = content[: len(content) * 6 // 10].replace(b'"caption 1"', b'"         "')
    (folder / "000000.tar").write_bytes(content)
    return folder


def test_a_bad_clip_gives_way_to_the_next_good_one(corpus, half_bad):
    planned = keys(stream(corpus), 3 * NUM_CLIPS + 8)
    clips = stream(half_bad)
    found = keys(clips, 3 * NUM_CLIPS)
    good = {clip["key"] for clip in stream(half_bad, None)}
    assert 2 <= len(good) < 6 and len(clips.quarantine.bad) == NUM_CLIPS - len(good)
    assert found == [next(key for key in planned[k:] if key in good) for k in range(3 * NUM_CLIPS)]
    assert found[5:15] == keys(stream(half_bad, 5), 10)  # a resumed run replaces the same


def test_ranks_and_workers_take_equal_steps_over_bad_clips(half_bad, tmp_path):
    straight = keys(stream(half_bad), 24)
    path = tmp_path / "run" / "quarantine.jsonl"
    ranks = []
    for rank in range(2):
        data = AudioShards(DataConfig([str(half_bad)], num_workers=3, max_bad_fraction=1.0), AUDIO, 0, 2, 0.1, path)
        clips = stream(half_bad, 0, 1.0, rank, 2, path)
        ranks.append([key for batch in itertools.islice(data.loader(clips), 6) for key in batch["key"]])
    assert [key for step in zip(*ranks) for key in step] == straight
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {record["shard"] for record in records} == {f"{half_bad}/000000.tar"}
    assert {(record["key"], record["reason"]) for record in records} >= {
        ("clip1", "empty caption"),
        (None, "lost in a damaged or cut off tar"),
    }
    bad = NUM_CLIPS - len(set(straight))
    assert len({record["clip"] for record in records}) == bad
    (line,) = data.bad_clips()  # the main process has met none: it knows from the file
    assert line.startswith(f"{bad} of {NUM_CLIPS} clips left out: ")
    assert "1 empty caption" in line and line.endswith(f"; listed in {path}")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_stops_when_too_many_are_bad(num_workers, half_bad, tmp_path):
    config = DataConfig([str(half_bad)], num_workers=num_workers)
    data = AudioShards(config, AUDIO, 0, 2, 0.1, tmp_path / "quarantine.jsonl")
    with pytest.raises(UserError) as caught:
        list(itertools.islice(data.train_dataloader(), 20))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    stated = rf"[12] of {NUM_CLIPS} clips are bad, more than data\.max_bad_fraction=0\.01 allows"  # a worker each
    assert re.search(stated, str(caught.value))


def test_the_limit_counts_each_clip_once_over_the_epochs_and_processes(half_bad, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    bad = NUM_CLIPS - len(keys(stream(half_bad, None)))
    assert len(keys(stream(half_bad, 0, bad / NUM_CLIPS, path=path), 5 * NUM_CLIPS)) == 5 * NUM_CLIPS
    again = stream(half_bad, 0, bad / NUM_CLIPS, path=path)  # as another process: the same clips are no new ones
    assert len(keys(again, NUM_CLIPS)) == NUM_CLIPS
    assert len(path.read_text().splitlines()) > bad == len(again.quarantine.bad)
    with pytest.raises(UserError, match=f"{bad} of {NUM_CLIPS} clips"):
        keys(stream(half_bad, 0, (bad - 0.5) / NUM_CLIPS, path=path), 1 * NUM_CLIPS)


def test_a_broken_line_of_the_list_is_passed_over(corpus, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"shard": 3}\n\x00\n{"shard": "elsewhere", "clip": 1, "key": "a", "reason": "x"}\n{"sha')
    quarantine = Quarantine([ShardFolder(corpus)], 0.5, path)
    assert quarantine.summary() == ""
    quarantine.add(ShardFolder(corpus), 0, 2, BadClip("a", "no samples"))
    assert quarantine.summary().startswith(f"1 of {NUM_CLIPS} clips left out: 1 no samples")


def test_nothing_but_bad_clips_is_an_error(tmp_path):
    folder = make_shard(tmp_path / "x", {"a": BAD["no samples"], "b": BAD["empty caption"]})
    with pytest.raises(UserError, match="no clip that can be used"):
        keys(stream(folder), 1)
    assert keys(stream(folder, None)) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_the_limit_is_a_share(fraction):
    with pytest.raises(UserError, match="max_bad_fraction"):
        DataConfig(max_bad_fraction=fraction)


def test_features_of_another_shape_leave_their_clip_out(tmp_path):
    """Features of one batch are stacked."""
    shapes = {"a": (2, 3), "b": (2, 4), "c": (2, 3)}
    clips = {key: members_of({"text": key}, {"mean": np.zeros(shape, np.float16)}) for key, shape in shapes.items()}
    clips["d"] = members_of({"text": "d"}, {"mean": np.full((2, 3), np.nan, np.float16)})
    folder = make_shard(tmp_path / "x", clips)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "features": ["mean"]}))
    folders = [EncodedFolder(folder, ["mean"])]
    found = ClipStream(folders, AUDIO, NUM_SAMPLES, 0, 2, None, quarantine=Quarantine(folders, 1.0))
    assert keys(found) == ["a", "c"]
    assert [reason.partition(" (")[0] for reason in found.quarantine.bad.values()] == [
        "mean of another shape",
        "damaged mean.npy",
    ]
