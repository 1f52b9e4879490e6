import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audioldm2_pl.config import STAGES, ExperimentConfig, load_experiment, to_plain
from audioldm2_pl.describe import build_on_meta, describe, difference, networks_of, training_flops, training_memory
from audioldm2_pl.errors import UserError
from audioldm2_pl.experiment_file import RENAMED_KEYS
from audioldm2_pl.fields import limits_of, type_at
from audioldm2_pl.training.trainer import TrainerConfig

FOLDER = Path(__file__).parent.parent / "experiments"
EXPERIMENTS = sorted(FOLDER.rglob("*.yaml"))
SMOKE = FOLDER / "smoke.yaml"
COUNTED: set[str] = set()  # stages with their settings


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_and_builds(path):
    experiment = load_experiment(path)
    assert experiment.description and path.read_text().startswith("# ")
    settings = to_plain(experiment)
    for name in experiment.stages:
        sections = {section: settings[section] for section in ("audio", "vae", *STAGES[name].settings)}
        counted = json.dumps([name, sections, settings["training"][name]["batch_size"]])
        if counted not in COUNTED:  # the same networks stand in many files, and building takes seconds
            COUNTED.add(counted)
            stage = build_on_meta(experiment, STAGES[name])
            networks = networks_of([stage])
            assert all(p.device.type == "meta" for network in networks.values() for p in network.parameters())
            assert training_memory(experiment, stage) > 0


def test_describe_of_the_full_size_names_the_published_numbers():
    text = describe(load_experiment(FOLDER / "base_16k.yaml"))
    assert "346.94 M" in text  # T-UNet
    assert "55.38 M" in text  # VAE
    assert "55.26 M" in text or "55.2" in text  # vocoder
    assert "λ=8: 8 vectors" in text


def test_describe_says_what_memory_it_does_not_count():
    text = describe(load_experiment(FOLDER / "base_16k.yaml"))
    (line,) = [line for line in text.splitlines() if line.startswith("# not counted")]
    assert all(name in line for name in ("openai-community/gpt2", "google/flan-t5-large", "laion/clap-htsat-unfused"))


def test_operations_of_a_batch_are_those_of_three_forward_passes():
    """AudioMAE's forward is matrix products; each has two in the backward pass, but for the first layer's input."""
    experiment = load_experiment(FOLDER / "smoke.yaml", ["data.train=[shards]"])
    stage = build_on_meta(experiment, STAGES["audiomae"])
    network, *inputs = stage.example(experiment)
    with FlopCounterMode(display=False) as counter:
        network(*(value.to("meta") for value in inputs))
    assert 2.5 < training_flops(experiment, stage) / counter.get_total_flops() < 3
    twice = load_experiment(FOLDER / "smoke.yaml", ["data.train=[shards]", "training.audiomae.batch_size=4"])
    doubled = training_flops(twice, build_on_meta(twice, STAGES["audiomae"]))
    assert doubled == 2 * training_flops(experiment, stage)
    assert training_flops(experiment, build_on_meta(experiment, STAGES["clap"])) == 0  # it has no example


def test_autocast_halves_no_activations():
    demo = FOLDER / "demo.yaml"
    whole, mixed = (load_experiment(demo, [f"trainer.precision={name}"]) for name in ("32-true", "bf16-mixed"))
    memory = [training_memory(experiment, build_on_meta(experiment, STAGES["vae"])) for experiment in (mixed, whole)]
    assert memory[0] == memory[1]


def test_plain_config_holds_only_plain_values():
    def walk(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and walk(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(walk, value))
        return value is None or isinstance(value, (str, int, float, bool))

    assert walk(to_plain(load_experiment(FOLDER / "demo.yaml")))


def test_base_files_are_merged_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("name: a\nseed: 1\nunet: {sample_size: 256}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nname: b\n")
    experiment = load_experiment(tmp_path / "b.yaml", ["data.num_workers=2"])
    assert (experiment.name, experiment.seed, experiment.data.num_workers) == ("b", 1, 2)


def test_shipped_experiments_have_names(tmp_path, monkeypatch):
    """In any folder, on the command line and as a base; a file that lies there comes first."""
    monkeypatch.chdir(tmp_path)
    demo = load_experiment(FOLDER / "demo.yaml")
    assert load_experiment("demo") == load_experiment("experiments/demo.yaml") == demo
    assert load_experiment("table_1/audioldm_m").name == "audioldm_m"
    (tmp_path / "mine.yaml").write_text("base: demo.yaml\nname: mine")
    assert load_experiment("mine.yaml").training == demo.training
    (tmp_path / "demo.yaml").write_text("base: smoke\nname: other")
    assert load_experiment("mine.yaml").training != demo.training
    with pytest.raises(UserError, match="table_1/audioldm_n: no such experiment file; did you mean 'table_1/audioldm_"):
        load_experiment("table_1/audioldm_n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nmae: x", "did you mean 'name'"),
        ("training: {vae: {discriminator: {base_chanels: 3}}}", "did you mean 'base_channels'"),
        ("seed: [1]", "seed"),
        ("a: [", "not valid YAML"),
        ("- a", "a mapping"),
        ("base: none.yaml", "no such experiment"),
        ("gpt2: {hidden_size: 96}", "audiomae.embed_dim"),
        ("audio: {clip_seconds: 10.25}", "frames"),
        ("diffusion: {dropout_alone: {loa: 1.5}}", r"diffusion.dropout_alone.loa=1.5 .*from 0 to 1"),
        ("training: {ldm: {loa_dropout: 0.5}}", r"loa_dropout.*write diffusion.dropout_alone.loa"),
        ("diffusion: {dropout_alone: {phonems: 0.5}}", r"diffusion.dropout_alone.phonems: .*phonemes"),
        ("gpt2: {condition_dropout: 2}", r"gpt2.condition_dropout=2.0 .*from 0 to 1"),
        (
            "training: {ldm: {optimizer: {decay: cosin}}}",
            r"training.ldm.optimizer.decay='cosin': did you mean 'cosine'",
        ),
        ("training: {gpt2: {loss: l2}}", r"training.gpt2.loss='l2': choose one of mse, l1"),
        (
            "training: {vae: {optimizer: {name: lion}}}",
            r"training.vae.optimizer.name='lion': choose one of adamw, adam",
        ),
        ("training: {joint: {loss_weights: {difusion: 1}}}", "loss_weights.difusion: .*did you mean 'diffusion'"),
        ("training: {gpt2: {loss_weights: {diffusion: 1}}}", "loss_weights.diffusion: .*choose one of loa"),
        ("training: {gpt2: {loss_weights: {loa: null}}}", r"training.gpt2.loss_weights: no term"),
        ("training: {vae: {loss_weights: {reconstruction: null, kl: 0}}}", r"training.vae.loss_weights: no term"),
        ("training: {ldm: {loss_weights: {diffusion: -1}}}", r"loss_weights.diffusion=-1.0 has to be at least 0"),
        ("training: {clap: {batch_size: 0}}", r"training.clap.batch_size=0 has to be at least 1"),
        ("training: {joint: {ema_decay: 9}}", r"training.joint.ema_decay=9.0 .*below 1"),
        ("training: {ldm: {optimizer: {learning_rate: .nan}}}", r"learning_rate=nan is not finite"),
        ("training: {ldm: {optimizer: {learning_rates: {t5: .inf}}}}", r"learning_rates.t5=inf is not finite"),
        ("training: {ldm: {optimizer: {betas: [0.9, 1.5]}}}", r"betas\[1\]=1.5"),
        ("training: {ldm: {optimizer: {betas: [0.9]}}}", r"betas: 1 entries, has to have 2"),
        ("training: {ldm: {poolings: []}}", r"training.ldm.poolings is empty"),
        ("trainer: {precision: bf16}", r"trainer.precision='bf16': did you mean 'bf16-mixed'"),
        ("trainer: {accelerator: abacus}", r"trainer.accelerator='abacus'"),
        ("trainer: {loggers: [wand]}", r"trainer.loggers\[0\]='wand': did you mean 'wandb'"),
        ("trainer: {devices: 0}", r"trainer.devices='0'"),
        ("trainer: 5", "trainer: '5' stands where settings do"),
        ("gpt2: {num_heads: 0}", r"gpt2.num_heads=0"),
        ("gpt2: {num_heads: 7}", r"gpt2.num_heads=7 does not divide a width of 768"),
        ("unet: {num_heads: [0, 8, 12, 20]}", r"unet.num_heads\[0\]=0"),
        ("unet: {norm_num_groups: 0}", r"unet.norm_num_groups=0"),
        ("audio: {hop_length: 0}", r"audio.hop_length=0"),
        ("audio: {clip_seconds: .nan}", r"audio.clip_seconds=nan"),
        ("audio: {num_fft: 512}", r"audio.num_fft=512 has to hold window_length=1024"),
        ("vae: {block_out_channels: []}", r"vae.block_out_channels is empty"),
        ("sampling: {eta: 5}", r"sampling.eta=5.0 .*from 0 to 1"),
        ("sampling: {guidance_scale: .inf}", r"sampling.guidance_scale=inf"),
        ("sampling: {num_steps: 2000}", r"num_steps=2000 has to be below diffusion.num_timesteps"),
        ("data: {max_bad_fraction: 2}", r"data.max_bad_fraction=2.0"),
        ("data: {train: ['${oc.env:HOME}']}", r"data.train\[0\]: .*nothing is filled in"),
        ("conditioners: {t5: {words: [a, '${x}']}}", r"conditioners.t5.words\[1\]: .*nothing is filled in"),
        ("data: {allow_pipe: true}", r"data.allow_pipe: .*--allow-pipe"),
        ("seed: '%s'", "seed: Value '%s'"),
        ("seed: %s", "not valid YAML"),
        ("seed: 1\nseed: 2", "seed: stands there twice"),
        ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: &a [*a]", "nested too deep"),
        ("base: null", "base: names a YAML file"),
        ("base: [null]", "base: names a YAML file"),
        ("base: x.yaml", "is its own base"),
        ("name: ../../x", "inside `runs`"),
        ("name: /tmp/x", "inside `runs`"),
        ("name: .", "inside `runs`"),
        ("name: ''", "inside `runs`"),
        ('name: "a\\0b"', "is not a text"),
    ],
)
def test_mistakes_are_plain_errors(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_experiment(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("old", [key for key, now in RENAMED_KEYS.items() if " " not in now])
def test_an_old_key_names_the_new_one(tmp_path, old):
    section, name = old.rsplit(".", 1)
    path, new = tmp_path / "x.yaml", RENAMED_KEYS[old]
    path.write_text(f"{section}: {{{name}: 1}}\n")
    with pytest.raises(UserError, match=rf"x\.yaml: {old} is now {new}$"):
        load_experiment(path)
    for override in (f"{old}=1", f"{section}={{{name}: 1}}"):
        with pytest.raises(UserError, match=rf"{old} is now {new}$"):
            load_experiment(SMOKE, [override])
    assert type_at(ExperimentConfig, new) is not None


@pytest.mark.parametrize("text", ["0123", "1e3", "on", "null", "%s", "2024-01-01", "a: b", "é"])
def test_a_name_stays_as_it_is_written(tmp_path, text):
    assert load_experiment(SMOKE, [f"name={text}"]).name == text
    path = tmp_path / "x.yaml"
    if text not in ("%s", "a: b", "null"):
        path.write_text(f"base: {SMOKE}\nname: {text}\ntrainer: {{devices: 2}}\n", encoding="utf-8-sig")
        experiment = load_experiment(path)
        assert (experiment.name, experiment.trainer.devices) == (text, "2")


def test_words_are_no_truths(tmp_path):
    (tmp_path / "x.yaml").write_text(f"base: {SMOKE}\nconditioners: {{t5: {{words: [in, on, no, 1e3]}}}}\n")
    assert load_experiment(tmp_path / "x.yaml").conditioners.t5.words == ["in", "on", "no", "1e3"]


@pytest.mark.parametrize(
    "override", ["name=../x", "name=${oc.env:HOME}", "data.train=[${oc.env:HOME}]", "seed=%s", "seed"]
)
def test_overrides_are_data_too(override):
    with pytest.raises(UserError) as error:
        load_experiment(SMOKE, [override])
    assert "\n" not in str(error.value)


def test_null_drops_a_term_a_rate_and_a_part(tmp_path):
    experiment = load_experiment(
        SMOKE,
        ["training.vae.loss_weights.kl=null", "training.ldm.optimizer.learning_rates.t5=null", "from.vae=null"],
    )
    assert "kl" not in experiment.training.vae.loss_weights and "reconstruction" in experiment.training.vae.loss_weights
    assert experiment.training.ldm.optimizer.learning_rates == {} and experiment.from_ == {}


def test_dataclasses_are_checked_too():
    with pytest.raises(UserError, match=r"trainer\.log_every_batches=0"):
        ExperimentConfig(trainer=TrainerConfig(log_every_batches=0))
    with pytest.raises(UserError, match=r"trainer\.precision='bf16'"):
        ExperimentConfig(trainer=TrainerConfig(precision="bf16"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"seed='x' is not a whole number"):
        ExperimentConfig(seed="x")  # type: ignore[arg-type]


def test_every_number_has_a_range_and_every_word_its_choices():
    """But for names, paths and the few numbers of which any finite one is right."""
    unbounded, words = [], []

    def walk(config, prefix):
        for f in dataclasses.fields(config):
            hint, key = str(typing.get_type_hints(config)[f.name]), prefix + f.name
            value = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            if dataclasses.is_dataclass(value):
                walk(type(value), key + ".")
            elif re.search(r"\b(int|float)\b", hint) and not limits_of(config, f.name).get("bounds"):
                unbounded.append(key)
            elif hint == "<class 'str'>":
                words.append(key)

    walk(ExperimentConfig, "")
    assert unbounded == ["audio.fbank_mean", "vocoder.input_mean"]
    assert words == ["name", "description", "runs", "trainer.devices"]


def test_saved_bytes_counts_activations_on_meta():
    from audioldm2_pl.describe import saved_bytes

    x = torch.empty(4, 8, device="meta", requires_grad=True)
    assert saved_bytes(lambda: (x * x).sum()) == 2 * 4 * 8 * 4


def test_presets_differ_where_paper_and_code_do():
    paper, official = (load_experiment(FOLDER / f"{name}.yaml") for name in ("paper", "official"))
    rows = {line.split()[0]: line.split()[1:] for line in difference("paper", paper, "official", official).splitlines()}
    assert rows.pop("setting") == ["paper", "official"]
    assert rows == {
        "audiomae.loa_layers": ["16", "3"],
        "conditioners.clap.empty_probability": ["0.0", "0.1"],
        "diffusion.dropout_unit": ["sample", "batch"],
        "diffusion.keep_first_batch": ["False", "True"],
        "sampling.eta": ["0.0", "1.0"],
        "sampling.candidates": ["1", "3"],
        "training.ldm.optimizer.warmup_batches": ["10000", "5000"],
        "training.gpt2.optimizer.learning_rate": ["0.0001", "0.0002"],
        "training.gpt2.optimizer.warmup_batches": ["10000", "1000"],
        "training.gpt2.loss_weights.loa": ["1.0", "2.0"],
        "training.gpt2.loss": ["mse", "l1"],
        "training.joint.optimizer.warmup_batches": ["10000", "5000"],
        "training.joint.loss_weights.loa": ["1.0", "2.0"],
        "training.joint.loss": ["mse", "l1"],
        "training.joint.p_gt": ["0.25", "0.0"],
        "training.joint.skip_dropped_loa": ["False", "True"],
    }
    assert "same settings" in difference("paper", paper, "again", paper)
