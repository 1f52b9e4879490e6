"""Texts => tokens, and what a tokenizer does not read of a text."""

import threading
from collections.abc import Sequence
from typing import Any

LOCK = threading.Lock()  # a tokenizer keeps where to cut and how far to pad while it works, for all threads


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int | None = None) -> Any:
    """Token numbers and mask (B, L), cut at `max_length` or the tokenizer's own, padded to the longest."""
    with LOCK:
        return tokenizer(list(texts), padding="longest", truncation=True, max_length=max_length, return_tensors="pt")


def unread(reader: str, tokenizer: Any, text: str, max_length: int) -> list[str]:
    """A line for what is cut off a text, and one for characters that the reader has no token for."""
    with LOCK:
        tokens = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    numbers, places = tokens["input_ids"], tokens.get("offset_mapping", [])
    unknown = [text[a:b] for number, (a, b) in zip(numbers, places) if number == tokenizer.unk_token_id]
    return lines_of(reader, len(numbers), max_length, unknown)


def lines_of(reader: str, num_tokens: int, max_length: int, unknown: Sequence[str]) -> list[str]:
    lines = [f"{reader} reads {max_length} of {num_tokens} tokens"] if num_tokens > max_length else []
    if unknown := list(dict.fromkeys(part for part in unknown if part.strip())):
        lines.append(f"{reader} does not know {', '.join(map(repr, unknown[:10]))}")
    return lines
