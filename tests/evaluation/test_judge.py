import torch
from tiny_corpus import AUDIO, NAMES, write_split

from evaluation.clips import read_clips
from evaluation.judge import (
    Judge,
    Segment,
    cut_window,
    distort,
    load_judge_data,
    load_or_train_judge,
    train_judge,
)


def test_judge_learns_classes_and_halves(corpus, judge_config):
    data = load_judge_data(corpus / "judge", AUDIO)
    judge = train_judge(data, judge_config)
    assert judge.config.classes == sorted(NAMES)
    for clip in read_clips(corpus / "test", AUDIO):
        parts = torch.from_numpy(clip.waveform).chunk(len(clip.events))
        heard = [judge.config.classes[judge.logits(part[None]).argmax()] for part in parts]
        assert heard == clip.names
    quiet = torch.from_numpy(clip.waveform)[None] * 0.2
    assert judge.embedding(quiet).shape == (1, judge_config.embedding_size)


def test_same_seed_gives_the_same_judge(corpus, judge_config):
    judge_config.batches = 3
    data = load_judge_data(corpus / "judge", AUDIO)
    first, second = (train_judge(data, judge_config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_judge_is_kept_until_split_or_config_change(corpus, judge_config, tmp_path):
    judge_config.batches = 2
    split = corpus / "judge"
    judge, kept_seconds = load_or_train_judge(split, tmp_path, judge_config)
    assert kept_seconds == 0
    again, kept_seconds = load_or_train_judge(split, tmp_path, judge_config)
    assert kept_seconds > 0 and isinstance(again, Judge)
    waveform = torch.randn(2, AUDIO.num_samples)
    assert torch.equal(judge.logits(waveform), again.logits(waveform))
    judge_config.seed = 5
    assert load_or_train_judge(split, tmp_path, judge_config)[1] == 0
    other = write_split(tmp_path / "other", 9, seed=4)
    assert load_or_train_judge(other, tmp_path, judge_config)[1] == 0


def test_windows_stay_in_their_segment(corpus):
    data = load_judge_data(corpus / "judge", AUDIO)
    data.log_mel = torch.arange(64.0)[None, :, None].expand(len(data.log_mel), -1, 4)
    draw = torch.Generator().manual_seed(0)
    for begin, end, event in ((0, 32, (0, 32)), (32, 64, (0, 32)), (0, 64, (20, 30)), (0, 64, (0, 64))):
        for _ in range(20):
            window = cut_window(data, Segment(0, begin, end, *event, "hum"), 32, draw)[:, 0]
            assert window.shape == (32,) and window.min() >= begin and window.max() < end
            if event == (20, 30):
                assert window.min() <= 20 and window.max() >= 29
    short = cut_window(data, Segment(0, 8, 16, 0, 8, "hum"), 32, draw)[:, 0]
    assert (short >= 0).sum() == 8


def test_distortion_keeps_shape_and_floor():
    log_mel = torch.randn(8, 1, 33, 64) - 4
    distorted = distort(log_mel, torch.Generator().manual_seed(0))
    assert distorted.shape == log_mel.shape and distorted.isfinite().all()
    assert distorted.min() >= -11.6 and not torch.equal(distorted, log_mel)
