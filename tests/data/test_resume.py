"""A build that breaks off goes on; whoever works and however often it broke, the bytes are the same."""

import io
import json
import multiprocessing
import os
import signal
import time
from functools import partial

import numpy as np
import pytest
import soundfile

from audioldm2_pl.errors import UserError
from data.journal import Journal, fingerprint
from data.shards import Clip, write_shards
from data.verify import verify

NUM_CLIPS = 24
made = []  # numbers of the clips that this process has made


def noise(number, pause=0.0):
    time.sleep(pause)
    made.append(number)
    if number % 7 == 3:
        raise UserError(f"clip {number} is lost")
    waveform = np.random.default_rng(number).uniform(-1, 1, 800).astype(np.float32)
    return Clip(f"clip-{number}", text=f"sound {number}", waveform=waveform)


def lazy_clips(num_clips=NUM_CLIPS, pause=0.0):
    for number in range(num_clips):
        yield Clip(f"clip-{number}", make=partial(noise, number, pause))


def build(output, pause=0.0, num_workers=1):
    return write_shards(lazy_clips(pause=pause), output, clips_per_shard=2, num_workers=num_workers)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_process(*arguments):
    process = multiprocessing.get_context("forkserver").Process(target=build, args=arguments)
    process.start()
    return process


def wait_for_shards(output, num_shards):
    journal = output.with_name(f".{output.name}.partial") / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not journal.is_file() or len(journal.read_bytes().splitlines()) <= num_shards:
        assert time.monotonic() < deadline, "no shard was finished"
        time.sleep(0.01)


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(tmp_path, capsys):
    index = build(tmp_path / "whole")
    assert [clip["key"] for clip in index["skipped"]] == ["clip-3", "clip-10", "clip-17"]
    whole = content(tmp_path / "whole")
    rng = np.random.default_rng(0)
    output = tmp_path / "broken"
    for num_shards in (1, 3, 5):  # killed three times before it gets to its end
        process = other_process(output, 0.1)
        wait_for_shards(output, num_shards)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not output.exists()
    capsys.readouterr()
    made.clear()
    build(output, 0.1)
    assert len(made) <= NUM_CLIPS - 10 and made[-1] == NUM_CLIPS - 1  # what was finished is not made again
    assert "resumes after" in capsys.readouterr().out
    assert content(output) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


def test_workers_end_with_the_process_that_was_killed(tmp_path):
    pids = tmp_path / "pids"
    process = multiprocessing.get_context("forkserver").Process(target=build_with_pids, args=(tmp_path / "out", pids))
    process.start()
    deadline = time.monotonic() + 120
    while not pids.is_dir() or not list(pids.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    workers = [int(path.name) for path in pids.iterdir()]
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tell_pid(folder, number):
    (folder / str(os.getpid())).touch()
    return noise(number, pause=0.05)


def build_with_pids(output, pids):
    pids.mkdir()
    clips = (Clip(f"clip-{number}", make=partial(tell_pid, pids, number)) for number in range(10_000))
    write_shards(clips, output, num_workers=2)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def break_off(clips, output, **options):
    """Writes until the clips run into an error."""

    def breaking():
        yield from clips
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError):
        write_shards(breaking(), output, num_workers=1, **options)


def test_changed_clips_and_settings_are_written_anew(tmp_path, capsys):
    clips = [noise(number) for number in (0, 1, 2, 4, 5, 6)]
    output = tmp_path / "out"
    break_off(clips, output, clips_per_shard=2)
    changed = [*clips[:3], noise(8), *clips[4:]]
    write_shards(changed, output, clips_per_shard=2, num_workers=1)
    printed = capsys.readouterr().out
    assert "clips have changed since the interrupted run; written anew from shard 1" in printed
    assert "resumes after 1 finished shards (2 clips)" in printed
    write_shards(changed, tmp_path / "fresh", clips_per_shard=2, num_workers=1)
    assert content(output) == content(tmp_path / "fresh")

    break_off(clips, output, clips_per_shard=2)
    write_shards(clips[:4], output, clips_per_shard=4, num_workers=1)
    assert "other settings; written anew" in capsys.readouterr().out
    assert verify(output)["num_clips"] == 4 and len(content(output)) == 3  # a tar, the index and members.bin


def test_a_key_of_a_finished_shard_is_numbered_where_it_comes_again(tmp_path):
    clips = [noise(number) for number in (0, 1, 2)]
    break_off([*clips, clips[0]], tmp_path / "out", clips_per_shard=1)
    index = write_shards([*clips, clips[0], clips[0]], tmp_path / "out", clips_per_shard=1, num_workers=1)
    assert [clip["key"] for clip in index["changed"]] == ["clip-0__2", "clip-0__3"]
    write_shards([*clips, clips[0], clips[0]], tmp_path / "fresh", clips_per_shard=1, num_workers=1)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_damaged_leftovers_are_not_trusted(tmp_path):
    output, partial_folder = tmp_path / "out", tmp_path / ".out.partial"
    clips = [noise(number) for number in (0, 1, 2, 4)]
    break_off(clips, output, clips_per_shard=1)
    with (partial_folder / "out/000002.tar").open("ab") as file:
        file.truncate(100)
    with (partial_folder / "journal.jsonl").open("ab") as file:
        file.write(b'{"shard": {"na')  # cut off by a full disk
    (partial_folder / "out/000009.tar").write_bytes(b"of a run that was longer")
    write_shards(clips, output, clips_per_shard=1, num_workers=1)
    write_shards(clips, tmp_path / "fresh", clips_per_shard=1, num_workers=1)
    assert content(output) == content(tmp_path / "fresh")


def test_two_processes_do_not_write_the_same_split(tmp_path):
    with Journal(tmp_path / "out", {}), pytest.raises(UserError, match="another process"):
        build(tmp_path / "out")


def test_fingerprint(tmp_path):
    path = tmp_path / "a.wav"
    missing = fingerprint(Clip("a", path=path))
    assert missing == fingerprint(Clip("a", path=path)) != fingerprint(Clip("a", text="b", path=path))
    soundfile.write(path, np.zeros(10), 8000)
    there = fingerprint(Clip("a", path=path))
    soundfile.write(path, np.zeros(20), 8000)
    assert len({missing, there, fingerprint(Clip("a", path=path))}) == 3
    assert len({fingerprint(clip) for clip in lazy_clips(3)}) == 3


def test_shards_are_cut_by_bytes(tmp_path):
    gib = 40_000 / 2**30
    build_options = {"shard_gib": gib, "num_workers": 1}
    clips = [noise(number) for number in (0, 1, 2, 4, 5, 6, 8, 9, 11, 12, 13, 14, 15, 16, 18)]
    index = write_shards(clips, tmp_path / "out", **build_options)
    counts = [shard["num_clips"] for shard in index["shards"]]
    sizes = [(tmp_path / "out" / shard["name"]).stat().st_size for shard in index["shards"]]
    assert len(counts) > 1 and sum(counts) == len(clips) and len(set(counts[:-1])) == 1
    assert max(sizes) <= 40_000 + 10_240  # and the tar's own ending
    flac = io.BytesIO()
    soundfile.write(
        flac, np.round(clips[0].waveform * 32768).clip(-32768, 32767).astype(np.int16), 16_000, format="FLAC"
    )
    assert counts[0] >= 40_000 // (len(flac.getvalue()) + 3 * 512 + 512) - 1  # and as full as can be
    # A clip that is larger than a shard has one to itself.
    index = write_shards(clips[:2], tmp_path / "small", shard_gib=1 / 2**30, num_workers=1)
    assert [shard["num_clips"] for shard in index["shards"]] == [1, 1]
    assert json.loads((tmp_path / "small/index.json").read_text()) == index
