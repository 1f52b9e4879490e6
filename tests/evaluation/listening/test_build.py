import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
from listening_material import RATE, TEXTS

from audioldm2_pl.audio import read_audio
from audioldm2_pl.errors import UserError
from evaluation.__main__ import main
from evaluation.folders import clip_files
from evaluation.listening.batches import LOW_PASS, REAL
from evaluation.listening.build import BuildOptions, build_test
from evaluation.listening.questions import CHECK
from evaluation.listening.stimuli import bad_example, beeps, high_energy, low_pass


def content_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    return json.loads(found)


def decode(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:audio/flac;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="float32", always_2d=True)[0]


def test_pages_hold_the_very_clips_and_name_no_system(build, material, tmp_path):
    test = build()
    sounds = {system: clip_files(material / system) for system in ("real", "muddy", "thin")}
    for batch in test.batches:
        page = (tmp_path / "test" / "pages" / f"{batch.name}.html").read_text()
        content = content_of(page)
        without_sound = re.sub(r"base64,[^\"]+", "", page)
        for word in ("muddy", "thin", LOW_PASS, "expected", *TEXTS):
            assert not re.search(rf'"[^" ]*{word}[^" ]*"', without_sound), word
        assert [item["name"] for item in content["items"]] == [item.name for item in batch.items]
        for shown, item in zip(content["items"], batch.items):
            sound = decode(shown["sound"])
            if item.system == CHECK:
                assert shown["text"] == "" and shown["questions"] == [CHECK]
                assert np.abs(sound - beeps(item.expected)[0]).max() < 1e-4
                continue
            assert shown["text"] == TEXTS[item.clip] and shown["questions"] == ["OVL", "REL"]
            real, rate = read_audio(sounds["real"][item.clip])
            wanted = low_pass(real, rate) if item.system == LOW_PASS else read_audio(sounds[item.system][item.clip])[0]
            assert np.abs(sound - wanted).max() < 1e-4
        assert "http" not in without_sound


def test_text_cannot_break_out_of_the_page(build, tmp_path):
    build()
    pages = [path.read_text() for path in (tmp_path / "test" / "pages").iterdir()]
    assert all("<b>dog" not in page for page in pages)
    assert any("\\u003cb>dog" in page for page in pages)


def test_examples_teach_both_scales_on_a_clip_of_another_batch(build, tmp_path):
    test = build()
    content = content_of((tmp_path / "test" / "pages" / "batch-001.html").read_text())
    good, bad, wrong = content["examples"]
    inside = {TEXTS[item.clip] for item in test.batches[0].items if item.clip}
    assert good["text"] == bad["text"] != wrong["text"] and good["text"] not in inside
    assert good["sound"] == wrong["sound"] != bad["sound"]


def test_speech_needs_no_captions_and_shows_no_text(build, tmp_path):
    test = build(captions=None, questions=("MOS",), clips_per_batch=5)
    assert len(test.batches) == 1
    content = content_of((tmp_path / "test" / "pages" / "batch-001.html").read_text())
    assert {item["text"] for item in content["items"]} == {""}
    assert set(content["questions"]) == {"MOS", CHECK} and len(content["examples"]) == 2


def test_the_same_seed_builds_the_same_bytes(build, tmp_path):
    assert build("one").digest == build("two").digest
    for page in (tmp_path / "one" / "pages").iterdir():
        assert page.read_bytes() == (tmp_path / "two" / "pages" / page.name).read_bytes()
    assert len(build("three", num_clips=2).batches) == 1


def test_low_pass_keeps_what_is_low():
    times = np.arange(RATE)[:, None] / RATE
    low, high = np.sin(2 * np.pi * 1000 * times), np.sin(2 * np.pi * 5000 * times)
    middle = slice(1000, -1000)
    assert np.abs(low_pass(low + high, RATE) - low)[middle].max() < 1e-3
    assert high_energy(low + high, RATE) == pytest.approx(0.5, abs=0.01)
    assert high_energy(low, RATE) == pytest.approx(0, abs=1e-3)
    muddy = bad_example(np.tile(low, (1, 2)), RATE)
    assert muddy.shape == (RATE, 2) and np.abs(muddy).max() < 1


@pytest.mark.parametrize("count", range(1, 6))
def test_beeps_can_be_counted(count):
    sound, rate = beeps(count)
    level = np.abs(sound[:, 0]).reshape(-1, rate // 100).max(1) > 0.05  # in steps of 10 ms
    assert np.diff(level.astype(int)).clip(0).sum() == count


def test_missing_and_doubtful_input_is_told(build, material, tmp_path):
    captions = tmp_path / "captions.csv"

    def told(text: str, message: str) -> None:
        captions.write_text(text)
        with pytest.raises(UserError, match=message):
            build(captions=captions)

    told("filename,caption\ndog.wav,a\nowl.wav,b\n", "1 of 2 clips are missing for real, the first is owl")
    told("filename,text\ndog.wav,a\n", "needs the columns filename and caption")
    for options, message in {
        (("captions", None),): "REL asks",
        (("questions", ("OVL", "XYZ")),): "choose from OVL, REL, MOS",
        (("questions", ("OVL", "OVL")),): "twice",
        (("num_clips", 9),): "only 3 clips",
        (("num_clips", 0),): "at least 1",
        (("clips_per_batch", 0),): "at least 1",
    }.items():
        with pytest.raises(UserError, match=message):
            build(**dict(options))
    build()
    (tmp_path / "test" / "answers.sqlite").touch()
    with pytest.raises(UserError, match="holds the answers to a test already"):
        build()
    (tmp_path / "broken.wav").write_text("no sound")
    with pytest.raises(UserError, match="cannot be read"):
        read_audio(tmp_path / "broken.wav")


def test_references_that_the_anchor_cannot_muffle_are_told(tmp_path):
    for system, rate in (("real", 7000), ("other", 16000)):
        (tmp_path / system).mkdir()
        soundfile.write(tmp_path / system / "a.wav", np.full(1000, 0.1), rate)
    systems = {"other": tmp_path / "other"}
    with pytest.raises(UserError, match=r"a.wav: at 7000 Hz it has nothing above 3500 Hz"):
        build_test(tmp_path / "test", tmp_path / "real", systems, None, BuildOptions(questions=("MOS",)))


def test_command_line(material, tmp_path, capsys):
    arguments = ["listen", "build", str(tmp_path / "t"), "--reference", str(material / "real")]
    assert main([*arguments, "--system", "muddy"]) == 2
    assert main([*arguments, "--system", f"{REAL}={material / 'muddy'}"]) == 2
    assert "this name is taken" in capsys.readouterr().err
    assert main([*arguments, "--system", f"m={material / 'muddy'}", "--questions", "MOS", "--clips", "2"]) == 0
    assert "1 batches of up to 8 clips" in capsys.readouterr().out
    assert main(["listen", "analyse", str(tmp_path / "t")]) == 2
    assert "no answers yet" in capsys.readouterr().err
    assert main(["listen", "serve", str(tmp_path / "nothing")]) == 2
    assert "no listening test here" in capsys.readouterr().err
