import torch
from tiny_corpus import AUDIO, NAMES, write_split

from evaluation.clips import read_clips
from evaluation.sound_classifier import (
    EventSegment,
    SoundClassifier,
    cut_window,
    distort,
    load_classifier_data,
    load_or_train_classifier,
    train_classifier,
)


def test_classifier_learns_classes_and_halves(corpus, classifier_config):
    data = load_classifier_data(corpus / "judge", AUDIO)
    classifier = train_classifier(data, classifier_config)
    assert classifier.config.classes == sorted(NAMES)
    for clip in read_clips(corpus / "test", AUDIO):
        parts = torch.from_numpy(clip.waveform).chunk(len(clip.events))
        predicted = [classifier.config.classes[classifier.logits(part[None]).argmax()] for part in parts]
        assert predicted == clip.names
    quiet = torch.from_numpy(clip.waveform)[None] * 0.2
    assert classifier.embedding(quiet).shape == (1, classifier_config.embedding_size)


def test_same_seed_gives_the_same_classifier(corpus, classifier_config):
    classifier_config.batches = 3
    data = load_classifier_data(corpus / "judge", AUDIO)
    first, second = (train_classifier(data, classifier_config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_classifier_is_cached_until_split_or_config_change(corpus, classifier_config, tmp_path):
    classifier_config.batches = 2
    split = corpus / "judge"
    classifier, earlier_seconds = load_or_train_classifier(split, tmp_path, classifier_config)
    assert earlier_seconds == 0
    again, earlier_seconds = load_or_train_classifier(split, tmp_path, classifier_config)
    assert earlier_seconds > 0 and isinstance(again, SoundClassifier)
    waveform = torch.randn(2, AUDIO.num_samples)
    assert torch.equal(classifier.logits(waveform), again.logits(waveform))
    classifier_config.seed = 5
    assert load_or_train_classifier(split, tmp_path, classifier_config)[1] == 0
    other = write_split(tmp_path / "other", 9, seed=4)
    assert load_or_train_classifier(other, tmp_path, classifier_config)[1] == 0


def test_windows_stay_in_their_segment(corpus):
    data = load_classifier_data(corpus / "judge", AUDIO)
    data.log_mel = torch.arange(64.0)[None, :, None].expand(len(data.log_mel), -1, 4)
    draw = torch.Generator().manual_seed(0)
    for begin, end, event in ((0, 32, (0, 32)), (32, 64, (0, 32)), (0, 64, (20, 30)), (0, 64, (0, 64))):
        for _ in range(20):
            window = cut_window(data, EventSegment(0, begin, end, *event, "hum"), 32, draw)[:, 0]
            assert window.shape == (32,) and window.min() >= begin and window.max() < end
            if event == (20, 30):
                assert window.min() <= 20 and window.max() >= 29
    short = cut_window(data, EventSegment(0, 8, 16, 0, 8, "hum"), 32, draw)[:, 0]
    assert (short >= 0).sum() == 8


def test_distortion_keeps_shape_and_floor():
    log_mel = torch.randn(8, 1, 33, 64) - 4
    distorted = distort(log_mel, torch.Generator().manual_seed(0))
    assert distorted.shape == log_mel.shape and distorted.isfinite().all()
    assert distorted.min() >= -11.6 and not torch.equal(distorted, log_mel)
