"""Features that were stored give the losses of those computed on the fly; stale and damaged ones are noticed."""

import dataclasses
import json
import random
import shutil
import tarfile

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.shards.datamodule import AudioShards
from audioldm2_pl.shards.encoded import EncodedFolder
from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.reader import ShardFolder
from audioldm2_pl.training.run import STAGES, train
from data.encode import encode_experiment, main, parts_to_encode
from data.feature_writer import FeatureWriter
from data.shards import Clip, write_shards
from data.verify import verify

AUDIO_FEATURES = ("mean", "std", "grid")
TEXT_FEATURES = ("clap_text", "t5", "t5_length")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Seven noises in shards of 4 and 3, with two captions each, the second one longer."""
    folder = tmp_path_factory.mktemp("corpus") / "train"
    rng = np.random.default_rng(0)
    clips = [
        Clip(f"clip{i}", captions=[f"sound {i}", f"the longer caption of sound {i}"],
             waveform=rng.uniform(-0.3, 0.3, 40_000 - 500 * i).astype(np.float32))
        for i in range(7)
    ]  # fmt: skip
    write_shards(clips, folder, clips_per_shard=4, num_workers=1)
    return folder


@pytest.fixture(scope="module")
def given(smoke, corpus, tmp_path_factory):
    """Makes experiments whose parts are given but for the T-UNet, T5 among them, so that all of them are frozen."""
    donor = smoke("name=donor", "stages=[clap,audiomae,vae,ldm,gpt2]", runs=tmp_path_factory.mktemp("donor"))
    train(donor)
    runs = tmp_path_factory.mktemp("runs")

    def load(*overrides: str, copy: bool = False):
        model = donor.model_folder
        names = ("clap", "t5", "audiomae", "vae", "unet", "gpt2")
        parts = [f"from.{name}={model}" for name in names]
        place = tmp_path_factory.mktemp("copy") if copy else runs
        return smoke("name=given", f"data.train=[{corpus}]", *parts, *overrides, runs=place)

    return load


def losses(experiment, name: str, encoded: bool, num_batches: int = 4) -> list[dict[str, float]]:
    """The loss terms of a stage's first batches, with the draws of training."""
    seed_everything(0, verbose=False)
    stage = STAGES[name].build(experiment, ModelFolder(experiment.model_folder, experiment.from_)).train()
    data = AudioShards(experiment.data, experiment.audio, 5, 3)
    if encoded:
        data.read_encoded(stage.encoded, stage.stored_texts(), experiment.model_folder)
    found = []
    for i, batch in zip(range(num_batches), data.train_dataloader()):
        assert ("waveform" in batch) != encoded
        torch.manual_seed(i)
        random.seed(i)
        terms = stage.losses(batch)
        found.append({key: float(term) for key, term in terms.items()} | {"text": batch["text"]})
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_stages_lose_the_same_with_and_without_stored_features(dtype, tolerance, given, corpus, tmp_path):
    experiment = given(f"data.encoded=[{tmp_path / 'encoded'}]", "diffusion.condition_dropout=0.5")
    assert encode_experiment(experiment, 2, dtype) == [tmp_path / "encoded"]
    for name in ("ldm", "gpt2", "joint"):
        stored, fresh = losses(experiment, name, True), losses(experiment, name, False)
        assert len(stored) == 4 and [row.pop("text") for row in stored] == [row.pop("text") for row in fresh]
        for a, b in zip(stored, fresh):
            assert a == pytest.approx(b, rel=tolerance)


def test_a_stage_trains_from_stored_features_alone(given, corpus, tmp_path):
    source = shutil.copytree(corpus, tmp_path / "train")
    experiment = given(f"data.train=[{source}]", "stages=[joint]", copy=True)
    (output,) = encode_experiment(experiment, 4)
    assert output == tmp_path / "train.encoded"
    for tar in source.glob("*.tar"):
        tar.unlink()  # index.json stays: it tells which shards the features are of
    experiment.data.encoded = [str(output)]
    train(experiment)
    assert (experiment.run_folder / "stages" / "joint.json").is_file()


def test_a_broken_off_run_goes_on_and_a_whole_one_is_left_alone(given, tmp_path, monkeypatch, capsys):
    experiment = given(f"data.encoded=[{tmp_path / 'whole'}]")
    encode_experiment(experiment, 3)
    broken = given(f"data.encoded=[{tmp_path / 'broken'}]")
    close = FeatureWriter.close

    def die_after_the_first(self, *shard):
        close(self, *shard)
        raise RuntimeError("killed")

    monkeypatch.setattr(FeatureWriter, "close", die_after_the_first)
    with pytest.raises(RuntimeError, match="killed"):
        encode_experiment(broken, 3)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "broken").glob("*.tar")] == ["000000.tar"]
    before = (tmp_path / "broken" / "000000.tar").stat().st_mtime_ns
    encode_experiment(broken, 3)
    assert (tmp_path / "broken" / "000000.tar").stat().st_mtime_ns == before
    for name in ("000000.tar", "000001.tar", "index.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == [
        "000000.tar",
        "000001.tar",
        "index.json",
        "members.bin",
    ]
    capsys.readouterr()
    encode_experiment(broken, 3)
    assert "up to date" in capsys.readouterr().out


@pytest.fixture(scope="module")
def encoded(given, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "features"
    experiment = given(f"data.encoded=[{folder}]")
    encode_experiment(experiment, 4)
    return experiment


def read(experiment, **changes):
    data = AudioShards(experiment.data, changes.get("audio", experiment.audio), 0, 2)
    data.read_encoded(
        changes.get("needed", AUDIO_FEATURES), TEXT_FEATURES, changes.get("model", experiment.model_folder)
    )
    return data


def test_members_are_arrays_and_json(encoded, corpus):
    folder = EncodedFolder(encoded.data.encoded[0], (*AUDIO_FEATURES, *TEXT_FEATURES))
    with tarfile.open(folder.shard_path(0)) as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {"npy", "json"}
    assert verify(folder.path)["num_clips"] == 7
    source = ShardFolder(corpus)
    assert folder.counts == source.counts
    for shard, count in enumerate(folder.counts):
        for i in range(count):
            clip, sound = folder.load(shard, i), source.load(shard, i)
            assert clip["key"] == sound["key"] and clip["captions"] == sound["captions"]
            assert clip["features"]["t5"].shape[:2] == (2, clip["features"]["t5_length"].max())
            assert clip["features"]["mean"].dtype == np.float16


def test_features_of_an_earlier_front_end_are_refused(encoded, tmp_path):
    folder = shutil.copytree(encoded.data.encoded[0], tmp_path / "features")
    index = json.loads((folder / "index.json").read_text())
    del index["front_end"]
    (folder / "index.json").write_text(json.dumps(index))
    data = dataclasses.replace(encoded.data, encoded=[str(folder)])
    with pytest.raises(UserError, match="levelled in another way; encode the clips again"):
        read(dataclasses.replace(encoded, data=data))


def test_stale_features_are_refused(encoded, corpus, given, tmp_path):
    read(encoded)
    with pytest.raises(UserError, match=r"audio\.peak=None, now it is 0\.3"):
        read(encoded, audio=dataclasses.replace(encoded.audio, peak=0.3))
    model = shutil.copytree(encoded.model_folder, tmp_path / "model")
    weights = next((model / "vae").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"not of the vae that .*encode the clips again"):
        read(encoded, model=model)
    with pytest.raises(UserError, match="but clap is needed"):
        read(encoded, needed=("grid", "clap"))
    source = shutil.copytree(corpus, tmp_path / "train")
    index = json.loads((source / "index.json").read_text())
    index["shards"][1]["sha256"] = "0" * 64
    (source / "index.json").write_text(json.dumps(index))
    other = given(f"data.train=[{source}]", f"data.encoded={encoded.data.encoded}".replace("'", ""))
    with pytest.raises(UserError, match="not of the shards that"):
        read(other)
    with pytest.raises(UserError, match="no encoded features"):
        read(given(f"data.encoded=[{corpus}]"))


def test_bad_clips_stay_bad_and_keep_their_places(given, corpus, tmp_path):
    source = shutil.copytree(corpus, tmp_path / "train")
    key, members = ShardFolder(source).table(0)[2]
    content = bytearray((source / "000000.tar").read_bytes())
    offset, size = members["flac"]
    content[offset : offset + size] = bytes(size)
    (source / "000000.tar").write_bytes(content)
    experiment = given(f"data.train=[{source}]", "data.max_bad_fraction=0.5")
    (output,) = encode_experiment(experiment, 3)
    index = json.loads((output / "index.json").read_text())
    assert [bad["key"] for bad in index["shards"][0]["bad"]] == [key]
    with pytest.raises(BadClip) as from_sound:
        ShardFolder(source).load(0, 2)
    with pytest.raises(BadClip) as from_features:
        EncodedFolder(output, AUDIO_FEATURES).load(0, 2)
    assert from_features.value.reason == from_sound.value.reason and from_features.value.key == key
    experiment.data.encoded = [str(output)]
    batches = []
    for data in (AudioShards(experiment.data, experiment.audio, 0, 7), read(experiment)):
        data.batch_size = 7
        batches.append(next(iter(data.train_dataloader())))
        assert data.bad_clips()[0].startswith("1 of 7 clips left out: 1 damaged flac")
    assert batches[0]["key"] == batches[1]["key"] and batches[0]["text"] == batches[1]["text"]


def test_damaged_features_are_noticed(encoded, tmp_path):
    folder = shutil.copytree(encoded.data.encoded[0], tmp_path / "features")
    key, members = EncodedFolder(folder, AUDIO_FEATURES).table(0)[1]
    content = bytearray((folder / "000000.tar").read_bytes())
    content[members["grid.npy"][0] + 500] ^= 4
    (folder / "000000.tar").write_bytes(content)
    with pytest.raises(BadClip, match=f"clip {key} .*damaged grid.npy"):
        EncodedFolder(folder, AUDIO_FEATURES).load(0, 1)
    assert "features" in EncodedFolder(folder, AUDIO_FEATURES).load(0, 0)


def test_what_trains_is_left_out(smoke, given):
    experiment = given()
    folder = ModelFolder(experiment.model_folder, experiment.from_)
    folder.take_given()
    assert list(parts_to_encode(experiment, folder)[0]) == ["vae", "audiomae", "clap", "t5"]
    unfinished = ModelFolder(experiment.model_folder, {})
    parts, lines = parts_to_encode(experiment, unfinished)
    assert parts == {} and len(lines) == 4
    assert "t5: left out, it trains (conditioners.t5 has no pretrained weights)" in lines


def test_command_refuses_in_one_line(given, corpus, smoke, capsys, tmp_path):
    common = [f"data.train=[{corpus}]", f"runs={tmp_path}", "trainer.progress_bar=false"]
    assert main(["experiments/smoke.yaml", *common]) == 2
    assert "neither vae nor audiomae is ready" in capsys.readouterr().err
    assert main(["experiments/smoke.yaml", *common, "audio.clip_seconds=1.28", "audiomae.num_frames=128",
                 "vae.sample_size=128", "unet.sample_size=16"]) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert "clips of up to 2.50 s" in error and error.count("\n") == 1
    before = (corpus / "index.json").read_bytes()
    with pytest.raises(UserError, match="other than encoded clips"):
        encode_experiment(given(f"data.encoded=[{corpus}]"))
    assert (corpus / "index.json").read_bytes() == before
