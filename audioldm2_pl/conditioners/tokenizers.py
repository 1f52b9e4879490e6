"""Tokenizers that are built without a download, texts => tokens, and what a tokenizer does not read of a text."""

import threading
from collections.abc import Sequence
from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel

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


def build_roberta_tokenizer(max_length: int) -> transformers.RobertaTokenizer:
    """A byte-level RoBERTa tokenizer without merges: 256 bytes and 5 special tokens, so nothing is unknown."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)


def build_t5_tokenizer(words: Sequence[str] = (), max_length: int = 128) -> transformers.T5Tokenizer:
    """A T5 tokenizer of printable ASCII characters; each of `words` is one further piece wherever a word begins.

    The unigram model takes the split with the highest sum of scores: any listed word beats its own characters, and
    of two listed words the longer wins.
    """
    characters = [chr(code) for code in range(0x21, 0x7F)]
    pieces = dict.fromkeys(f"▁{word}" for word in words if word)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(character, -3.0) for character in characters]
    vocabulary += [(piece, -1.0) for piece in pieces]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)
