"""The model card of a run: data and licences by clip counts, recipe, scores with their intervals, sounds and limits."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from audioldm2_pl.atomic import read_json_object
from audioldm2_pl.config import ExperimentConfig, to_yaml
from audioldm2_pl.errors import UserError
from audioldm2_pl.hub.folder import ModelFolder
from audioldm2_pl.training.records import record_of

MAX_ROWS = 20  # of the table of sources and licences; the rest become one


@dataclass
class CardData:
    """What a card says of one run."""

    clips: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, licence) => training clips
    unread: list[str] = field(default_factory=list)  # training folders that are not on this machine
    stages: list[tuple[str, int, float | None]] = field(default_factory=list)  # name, batches, seconds
    scores: list[tuple[str, str, float, float, float, int]] = field(default_factory=list)  # see `read_scores`
    parameters: dict[str, int] = field(default_factory=dict)  # part => numbers in its weights


def collect(experiment: ExperimentConfig) -> CardData:
    """Reads the run's records, scores and shards. UserError where one of them is damaged."""
    data = CardData(parameters=count_parameters(experiment.model_folder))
    data.scores = read_scores(experiment.run_folder / "report" / "scores")
    for name in experiment.stages:
        if (path := record_of(experiment, name)).is_file():
            record = read_json_object(path)
            data.stages.append((name, record.get("batches", 0), record.get("seconds")))
    for folder in experiment.data.train:
        try:
            split = experiment.data.open(folder)
        except UserError:
            data.unread.append(folder)
            continue
        for clip in split.clips_without_sound():
            data.clips[str(clip.get("source") or "unknown"), str(clip.get("licence") or "unknown")] += 1
    return data


def count_parameters(model: Path) -> dict[str, int]:
    """Part => numbers in its safetensors."""
    counts: dict[str, int] = {}
    for path in sorted(model.glob("[!.]*/*.safetensors")):
        with safe_open(path, "np") as weights:
            for name in weights.keys():  # noqa: SIM118 - no dict
                size = 1
                for length in weights.get_slice(name).get_shape():
                    size *= length
                counts[path.parent.name] = counts.get(path.parent.name, 0) + size
    return counts


def read_scores(folder: Path) -> list[tuple[str, str, float, float, float, int]]:
    """(protocol, score, value, low, high, number of clips) of a report's results from text."""
    found = []
    for path in sorted(folder.glob("*.text_to_audio.json")):
        result = read_json_object(path)
        for name, score in result.get("scores", {}).items():
            row = (result.get("protocol"), name, *(score.get(key) for key in ("value", "low", "high")))
            measured = [value for value in score.get("per_clip", {}).values() if value is not None]
            if None not in row:
                found.append((*row, len(measured) or result.get("num_clips", 0)))
    return found


def write_card(experiment: ExperimentConfig, repository: str, licence: str, sounds: dict[str, str]) -> str:
    """The README.md of a model: `sounds` are file => caption; `licence` is the weights', a word of the hub."""
    data, folder = collect(experiment), ModelFolder(experiment.model_folder)
    tags = ["audio", "audioldm2", *(["text-to-audio"] if folder.has("unet") else [])]
    head: dict[str, Any] = {"license": licence, "library_name": "audioldm2-pl", "tags": tags}
    if folder.has("unet"):
        head["pipeline_tag"] = "text-to-audio"
    opens = "It opens in stock diffusers as well." if folder.opens_in_diffusers else (
        f"Stock diffusers does not open it: {folder.own_parts()}."
    )  # fmt: skip
    about = plain(experiment.description) or "An experiment of audioldm2_pl."
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {plain(experiment.name)}\n\n{about}\n\nAn AudioLDM 2 ([Liu et al. 2023](https://arxiv.org/abs/2308.05734)) "
        f"in the hub's layout, trained with audioldm2_pl. {opens}",
        f"```sh\naudioldm2 generate {repository} \"a bell rings\"\n```",
        sounds_section(sounds),
        scores_section(data),
        data_section(data),
        recipe_section(experiment, data),
        "## Limits\n\nThe model knows the sounds and words of its training data alone, and repeats what is wrong or "
        "missing there. The scores hold for the test set and protocol that are named. What it generates is synthetic: "
        "say so where you publish it. The licences of the training data and of the parts that come from elsewhere "
        "go on beside this one.",
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def plain(text: str) -> str:
    """Text as one line without characters that a table or Markdown would read as its own."""
    return re.sub(r"([|<>`\[\]])", r"\\\1", " ".join(text.split()))


def sounds_section(sounds: dict[str, str]) -> str:
    if not sounds:
        return ""
    rows = [f"| {plain(caption)} | [{Path(name).name}]({name}) |" for name, caption in sounds.items()]
    return "## Sounds\n\n| caption | generated |\n|---|---|\n" + "\n".join(rows)


def scores_section(data: CardData) -> str:
    if not data.scores:
        return "## Scores\n\nNone measured."
    rows = [
        f"| {plain(protocol)} | {plain(name)} | {value:.4g} | {low:.4g} to {high:.4g} | {count} |"
        for protocol, name, value, low, high, count in data.scores
    ]
    return "## Scores\n\n| protocol | score | value | 95 % interval | clips |\n|---|---|---|---|---|\n" + "\n".join(
        rows
    )


def data_section(data: CardData) -> str:
    rows = [
        f"| {plain(source)} | {plain(licence)} | {count:,} |"
        for (source, licence), count in data.clips.most_common(MAX_ROWS)
    ]
    if rest := sum(data.clips.values()) - sum(count for _, count in data.clips.most_common(MAX_ROWS)):
        rows.append(f"| others | | {rest:,} |")
    table = "| source | licence | training clips |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
    unread = f"Not counted, for they are not on the machine that wrote this: {', '.join(map(plain, data.unread))}."
    return "\n\n".join(["## Data", *filter(None, [table, unread if data.unread else ""])])


def recipe_section(experiment: ExperimentConfig, data: CardData) -> str:
    """Stages and sizes as tables; the whole recipe as YAML."""
    stages = [
        f"| {name} | {batches:,} | {f'{seconds / 3600:.2f}' if seconds else ''} |"
        for name, batches, seconds in data.stages
    ]
    sizes = [f"| {part} | {count / 1e6:.2f} M |" for part, count in data.parameters.items()]
    elsewhere = {**experiment.from_, **experiment.start_from}
    taken = ", ".join(f"{part} from {plain(str(source))}" for part, source in elsewhere.items())
    recipe = to_yaml(experiment)
    blocks = ["## Recipe"]
    if stages:
        blocks.append("| stage | batches | hours |\n|---|---|---|\n" + "\n".join(stages))
    blocks.append("| part | parameters |\n|---|---|\n" + "\n".join(sizes))
    blocks += [f"Taken from elsewhere: {taken}."] if taken else []
    blocks.append(f"<details><summary>experiment.yaml</summary>\n\n```yaml\n{recipe}```\n\n</details>")
    return "\n\n".join(blocks)
