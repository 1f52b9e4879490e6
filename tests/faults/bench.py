"""What the faults hit: small shards, the smoke experiment stage by stage and what the unbroken run makes of it."""

import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from random import Random

from children import Child, Fault, Outcome

from audioldm2_pl.cli import main as audioldm2

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "experiments/smoke.yaml"
STAGES = ("clap", "audiomae", "vae", "vocoder", "decoder", "ldm", "gpt2", "joint")
SAMPLING = ("--steps", "2", "--seconds", "2.56", "--candidates", "1")

Body = Callable[[], int | None]


class Bench:
    """A folder with everything that cases start from, made when the first case asks for it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cases = folder / "cases"
        self.cases.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self.seconds: dict[str, float] = {}  # of each unbroken command

    def run(self, body: Body, seconds: float = 300.0) -> Outcome:
        return Child(body, self.log).wait(seconds)

    def must(self, body: Body, name: str = "") -> Outcome:
        """Runs what has to go well, and keeps its time under a name."""
        outcome = self.run(body)
        if outcome.code != 0:
            raise Fault(f"{name}: ended with code {outcome.code}: {outcome.said[-1500:]}")
        if name:
            self.seconds[name] = outcome.seconds
        return outcome

    def fresh(self) -> Path:
        """An empty folder for one case."""
        shutil.rmtree(self.cases, ignore_errors=True)
        self.cases.mkdir()
        return self.cases

    @cached_property
    def shards(self) -> Path:
        """8 training clips in 2 shards and 4 test clips."""
        self.must(synthesis(self.folder / "shards", 8, 4, clips_per_shard=4))
        return self.folder / "shards"

    def training(self, runs: Path, stage: str, *overrides: str) -> Body:
        """`audioldm2 train` of one stage, saving after each of its 4 batches."""
        words = [
            "train", str(SMOKE), "--stage", stage, f"data.train=[{self.shards}/train]", "data.test=null",
            f"runs={runs}", "trainer.progress_bar=false", "trainer.num_threads=1",
            f"training.{stage}.save_every_batches=1", *overrides,
        ]  # fmt: skip
        return lambda: audioldm2(words)

    def before(self, stage: str) -> Path:
        """A runs folder in which the stages before this one are finished by an unbroken run."""
        position = STAGES.index(stage)
        folder = self.folder / "straight" / f"before_{stage}"
        if position and not folder.is_dir():
            shutil.copytree(self.after(STAGES[position - 1]), folder, symlinks=True)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def after(self, stage: str) -> Path:
        """A runs folder in which this stage is finished, too."""
        folder = self.folder / "straight" / f"after_{stage}"
        if not (folder / "smoke/stages" / f"{stage}.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.before(stage), folder)
            self.must(self.training(folder, stage), stage)
        self.seconds.setdefault(stage, 3.0)  # an earlier call has made it
        return folder

    @cached_property
    def model(self) -> Path:
        """The model folder of all stages."""
        return self.after(STAGES[-1]) / "smoke/model"

    def generation(self, output: Path, prompts: Path, *options: str, model: Path | None = None) -> Body:
        words = ["generate", str(model or self.model), "--prompts", str(prompts), "--output", str(output)]
        return lambda: audioldm2([*words, "--batch-size", "1", *SAMPLING, *options])


def synthesis(output: Path, num_clips: int, num_test: int, clips_per_shard: int = 4) -> Body:
    """`python -m data.synthetic` in one process."""
    from data.synthetic import main

    words = [str(output), "--clips", str(num_clips), "--test-clips", str(num_test), "--judge-clips", "0"]
    return lambda: main([*words, "--clips-per-shard", str(clips_per_shard), "--workers", "1"])


def content(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The bytes of a folder's visible files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts) and name not in without:
            found[name] = path.read_bytes()
    return found


def check_same(found: dict[str, bytes], wanted: dict[str, bytes], what: str) -> None:
    if found != wanted:
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise Fault(f"{what}: not those of the unbroken run: {', '.join(differ[:8])}")


def hidden(folder: Path) -> list[str]:
    """Names of what is half-written, locks and the journals of builds apart."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != ".lock"]


def words_of(rng: Random) -> str:
    return f"{rng.choice(['a loud', 'a quiet', 'a'])} {rng.choice(['bell rings', 'siren wails', 'bird sings'])}"


def write_prompts(path: Path, num_prompts: int) -> Path:
    rng = Random(0)
    lines = [f"sound_{number} | {words_of(rng)}" for number in range(num_prompts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def import_everything() -> None:
    """So that no fork has to."""
    import torch
    import uvicorn

    import audioldm2_pl.hub.original.folder
    import audioldm2_pl.pipeline
    import audioldm2_pl.serve.server
    import audioldm2_pl.training.run
    import data.folder
    import data.synthetic
    import data.verify
    import evaluation.report.bench
    from audioldm2_pl.config import load_experiment
    from audioldm2_pl.hub.parts import HUB_CLASSES

    torch.set_num_threads(1)
    load_experiment(SMOKE)
    assert HUB_CLASSES and os.environ["OMP_NUM_THREADS"] == "1" and uvicorn.Config
    assert audioldm2_pl.training.run.train and data.folder.main and data.verify.main and data.synthetic.main
    assert audioldm2_pl.pipeline and audioldm2_pl.serve.server and audioldm2_pl.hub.original.folder
    assert evaluation.report.bench
