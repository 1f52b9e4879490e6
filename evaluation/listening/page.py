"""A batch as one HTML file that needs nothing else: instructions, examples, clips, questions."""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from string import Template

from .questions import question_of


def render_batch_page(
    batch: str,
    items: list[dict],
    examples: list[dict],
    questions: tuple[str, ...],
    completion_url: str,
) -> str:
    """items: name, text, questions (codes), flac; examples: title, text, flac. => HTML that names no system."""
    codes = dict.fromkeys(code for item in items for code in item["questions"])
    content = {
        "batch": batch,
        "questions": {code: asdict(question_of(code)) for code in codes},
        "asked": questions,
        "items": [with_sound_inside(item) for item in items],
        "examples": [with_sound_inside(example) for example in examples],
        "completionUrl": completion_url,
    }
    page = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    # "<" could end the script element that holds the text
    return page.substitute(content=json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"))


def with_sound_inside(entry: dict) -> dict:
    sound = "data:audio/flac;base64," + base64.b64encode(entry["flac"]).decode()
    return {"sound": sound} | {name: value for name, value in entry.items() if name != "flac"}
