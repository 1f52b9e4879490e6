"""The report as one HTML file that needs nothing else: audio, pictures, curves and tables inside."""

import base64
from collections import Counter
from html import escape
from pathlib import Path
from string import Template

import torch
from omegaconf import OmegaConf

from audioldm2_pl.audio import AudioConfig, LogMel, fit_length, load_waveform

from .clips import LabelledClip
from .pictures import log_mel_png, loss_chart
from .systems import SYSTEMS
from .verdicts import Verdict

SYSTEM_NAMES = {
    "real": "Reference",
    "reconstruction": "VAE + vocoder",
    "loa_to_audio": "From AudioMAE's LOA",
    "text_to_audio": "From text",
    "shuffled_captions": "From text, captions shuffled",
}
SCORE_NAMES = {
    "class_accuracy": "Class heard",
    "order_accuracy": "Order heard",
    "seconds": "Time of all stages and this report",
    "peak_memory_gib": "Memory of the largest process",
}
ROWS_PER_CLASS = 2  # test clips shown
ORDER_ROWS = 8  # two-event test clips shown
MAX_MEDIA_BYTES = 12_000_000  # of audio and pictures in the page, as base64


def render_page(
    settings: dict,
    results: dict,
    clips: list[LabelledClip],
    verdicts: dict[str, dict[str, Verdict]],
    folder: Path,
    audio: AudioConfig,
    curves: dict[str, dict[str, list[tuple[float, float]]]],
) -> str:
    """settings: the experiment as plain dicts; results: report.json's; folder: <system>/<key>.flac;
    curves: stage -> column -> points. => HTML"""
    missed = results["missed_targets"]
    return fill_template(
        "page.html",
        title=escape(str(settings["name"])),
        description=escape(str(settings.get("description") or "")),
        summary=summary(results),
        summary_class="miss" if missed else "hit",
        targets=targets_table(results["targets"]),
        systems=systems_table(results),
        order_definition=escape(results["order_accuracy_definition"]),
        examples=examples(clips, verdicts, folder, audio),
        classes=class_table(results),
        confusion=confusion_table(results["classes"], results["confusion"]["text_to_audio"]),
        curves=curve_sections(curves),
        timing=timing_table(results),
        provenance=provenance_table(results),
        experiment=escape(OmegaConf.to_yaml(OmegaConf.create(settings))),
    )


def fill_template(name: str, **parts: str) -> str:
    """A page's HTML file beside this one, with the style that all pages share."""
    folder = Path(__file__).parent
    style = (folder / "page.css").read_text(encoding="utf-8")
    return Template((folder / name).read_text(encoding="utf-8")).substitute(style=style, **parts)


def table(header: list[str], rows: list[list[str]], css: str = "") -> str:
    """Cells are HTML already; a row's first cell is its heading."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    table = f'<table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def summary(results: dict) -> str:
    measured = [t for t in results["targets"].values() if t["reached"] is not None]
    reached = sum(t["reached"] for t in measured)
    counts = results["num_clips"]
    return (
        f"{reached} of {len(measured)} targets reached, on {counts['class_accuracy']} one-event and "
        f"{counts['order_accuracy']} two-event test clips."
    )


def in_units(group: str, value: float | None, exact: bool = True) -> str:
    """A score or a cost as people read it; a target needs no decimals."""
    if value is None:
        return "–"
    if group == "seconds":
        return duration(value)
    if group == "peak_memory_gib":
        return f"{value:.2f} GiB" if exact else f"{value:.0f} GiB"
    return percent(value) if exact else f"{100 * value:.0f} %"


def targets_table(targets: dict[str, dict]) -> str:
    marks = {
        True: '<span class="hit">✓ reached</span>',
        False: '<span class="miss">✗ missed</span>',
        None: "not measured",
    }
    rows = []
    for key, target in targets.items():
        group, _, system = key.partition(".")
        bound = "≥" if target["bound"] == "at least" else "≤"
        wanted = f"{bound} {in_units(group, target['target'], exact=False)}"
        name = f"{SCORE_NAMES[group]} <small>{SYSTEM_NAMES.get(system, '')}</small>"
        rows.append([name, f"<b>{in_units(group, target['value'])}</b>", wanted, marks[target["reached"]]])
    return table(["Score", "Measured", "Target", ""], rows)


def systems_table(results: dict) -> str:
    order, both = results["order_accuracy_of_all_systems"], results["order_both_correct"]
    rows = []
    for system in SYSTEMS:
        level = results["levels"][system]
        rows.append(
            [
                SYSTEM_NAMES[system],
                percent(results["class_accuracy"][system]),
                percent(order[system]),
                percent(both[system]),
                f"{level['rms_db']:.1f} dB",
                f"{level['peak']:.2f}",
                percent(level["share_of_clipped_samples"]),
                percent(level["share_of_silent_clips"]),
            ]
        )
    header = ["System", "Class", "Order", "Both halves", "RMS", "Peak", "Clipped samples", "Silent clips"]
    return table(header, rows)


def chosen_clips(clips: list[LabelledClip]) -> list[LabelledClip]:
    """Two-event clips and one clip of every class first: what does not fit into the page falls off the end."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, int, LabelledClip]] = []
    for i, clip in enumerate(clips):
        group = "pair" if len(clip.events) == 2 else clip.names[0]
        limit = ORDER_ROWS if group == "pair" else ROWS_PER_CLASS
        if seen[group] < limit:
            rank = seen[group] if group != "pair" else seen[group] // (ORDER_ROWS // ROWS_PER_CLASS)
            ranked.append((rank, i, clip))
        seen[group] += 1
    return [clip for _, _, clip in sorted(ranked, key=lambda entry: entry[:2])]


def examples(
    clips: list[LabelledClip],
    verdicts: dict[str, dict[str, Verdict]],
    folder: Path,
    audio: AudioConfig,
) -> str:
    rows: dict[str, str] = {}
    num_bytes = 0
    for clip in chosen_clips(clips):
        cells = "".join(example_cell(system, clip, verdicts[system][clip.key], folder, audio) for system in SYSTEMS)
        num_bytes += len(cells)
        if rows and num_bytes > MAX_MEDIA_BYTES:
            break
        events = " → ".join(map(escape, clip.names))
        rows[clip.key] = (
            f'<article><h3>“{escape(clip.text)}”</h3><p class="events">{events}</p>'
            f'<div class="cells">{cells}</div></article>'
        )
    return "\n".join(rows[clip.key] for clip in clips if clip.key in rows)


def example_cell(system: str, clip: LabelledClip, verdict: Verdict, folder: Path, audio: AudioConfig) -> str:
    player = sound_player(folder / system / f"{clip.key}.flac", f"{clip.key}, {system}", audio)
    mark, css = ("✓", "hit") if verdict.right else ("✗", "miss")
    heard = escape(" → ".join(verdict.heard))
    return (
        f'<div class="cell"><h4>{SYSTEM_NAMES[system]}</h4>{player}'
        f'<p class="verdict"><span class="{css}">{mark}</span> {heard} '
        f"<small>{100 * verdict.probability:.0f} %</small></p></div>"
    )


def sound_player(path: Path, name: str, audio: AudioConfig) -> str:
    """A file's log-mel as a picture, and the file itself to listen to, both inside the page."""
    waveform = load_waveform(path, audio.sample_rate)
    waveform = fit_length(waveform, max(len(waveform), audio.num_fft))
    log_mel = LogMel(audio)(torch.from_numpy(waveform)[None])[0, 0].numpy()  # (F, M)
    picture = base64.b64encode(log_mel_png(log_mel)).decode()
    sound = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<img alt="log-mel of {escape(name)}" src="data:image/png;base64,{picture}">'
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{sound}"></audio>'
    )


def class_table(results: dict) -> str:
    by_class = results["class_accuracy_by_class"]
    rows = [
        [escape(name), *(shaded(by_class[s][name], percent(by_class[s][name])) for s in SYSTEMS)]
        for name in results["classes"]
    ]
    return table(["Class", *(SYSTEM_NAMES[s] for s in SYSTEMS)], rows, "shades")


def confusion_table(classes: list[str], counts: list[list[int]]) -> str:
    rows = []
    for name, row in zip(classes, counts):
        total = max(sum(row), 1)
        rows.append([escape(name), *(shaded(c / total, str(c) if c else "·") for c in row)])
    turned = [f'<span class="turned">{escape(name)}</span>' for name in classes]
    return table(["told ↓ heard →", *turned], rows, "shades confusion")


def shaded(share: float | None, text: str) -> str:
    return f'<span class="shade" style="--share:{share or 0:.2f}">{text}</span>'


def curve_sections(curves: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """One section a stage, one chart a loss term, training and validation in the same chart."""
    sections = []
    for stage, columns in curves.items():
        terms: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for column, points in sorted(columns.items()):
            phase, _, term = column.partition("/")
            terms.setdefault(term, {})[phase] = points
        charts = "".join(loss_chart(term, found) for term, found in terms.items())
        sections.append(f'<div><h3>{escape(stage)}</h3><div class="charts">{charts}</div></div>')
    return "".join(sections) or "<p>No loss curves were found beside the model.</p>"


def timing_table(results: dict) -> str:
    memory = results["peak_memory_gib_by_stage"]
    longest = max(results["seconds"]["total"], 1e-9)
    rows = []
    for part, seconds in results["seconds"].items():
        bar = f'<span class="bar" style="width:{100 * seconds / longest:.1f}%"></span>'
        gib = f"{memory[part]:.2f} GiB" if part in memory else ""
        rows.append([escape(part), duration(seconds), gib, "" if part == "total" else bar])
    return table(["Part", "Time", "Peak memory", "Share"], rows, "timing")


def provenance_table(results: dict) -> str:
    distance = results["log_mel_distance_db"]["reconstruction"]
    facts = {
        "seed": results["seed"],
        "device": results["device"],
        "torch": results["torch"],
        "sampling": ", ".join(f"{name} {value}" for name, value in results["sampling"].items()),
        "peak memory": f"{results['peak_memory_gib']:.2f} GiB",
        "log-mel distance of reconstruction": f"{distance:.2f} dB",
    }
    return table(["Fact", ""], [[name, escape(str(value))] for name, value in facts.items()])
