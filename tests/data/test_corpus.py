import json

import numpy as np

from data.corpus import Corpus
from data.shards import Clip
from data.verify import verify


def some_clips(num_clips):
    rng = np.random.default_rng(0)
    for number in range(num_clips):
        yield Clip(f"clip-{number}", waveform=rng.uniform(-1, 1, 1600), extra={"source_id": f"corpus:{number}"})


def test_splits(tmp_path, capsys):
    def clips(source, split, wanted):
        yield from some_clips(wanted if split == "train" else 0)
        print(wanted, "wanted")

    def run(wanted, source=tmp_path):
        argv = [str(source), str(tmp_path / "out"), "--wanted", str(wanted), "--workers", "1"]
        return Corpus("", ("train", "test"), clips, {"--wanted": {"type": int}}).main(argv)

    assert run(3) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    assert run(0) == 2  # would leave the three clips of before
    told = capsys.readouterr()
    assert "earlier run" in told.err and "0 wanted" in told.out
    assert run(3, tmp_path / "nowhere") == 2


def test_sizes_of_shards_and_what_was_refused_after_a_break(tmp_path, capsys):
    breaks = [True]

    def found(source, split):
        for clip in some_clips(9):
            yield clip
            if clip.key == "clip-6" and len(breaks) == 1:
                breaks.append(True)  # the first reading only counts
            elif clip.key == "clip-6" and len(breaks) == 2:
                breaks.append(True)
                raise OSError("disk")

    corpus = Corpus("", ("train",), found, held_out=lambda source: {"corpus:0", "corpus:8"})

    def run(*options):
        return corpus.main([str(tmp_path), str(tmp_path / "out"), "--workers", "1", *options])

    try:
        run("--clips-per-shard", "2", "--shuffle", "0")
    except OSError:
        assert not (tmp_path / "out/train").exists()
    assert len(breaks) == 3
    assert run("--clips-per-shard", "2", "--shuffle", "0") == 0
    printed = capsys.readouterr().out
    assert "resumes after" in printed and printed.count("refused 2 clips of evaluation sets (2 ids listed)") == 1
    assert "h a core-hour" in printed
    assert [shard["num_clips"] for shard in verify(tmp_path / "out/train")["shards"]] == [2, 2, 2, 1]
    assert run("--shard-gib", "0.000005") == 0  # 5,369 bytes
    index = json.loads((tmp_path / "out/train/index.json").read_text())
    assert [shard["num_clips"] for shard in index["shards"]] == [1] * 7
    assert run("--shard-gib", "0") == run("--clips-per-shard", "0") == run("--workers", "0") == 2
