"""Opening published encoders."""

import json
import pickle
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.weights import load_reason


def load_pretrained(kind: type, source: str, **options):
    """`kind.from_pretrained(source)`; UserError where `source` is neither a folder nor a hub id."""
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"cannot load {kind.__name__} from {source!r} ({load_reason(error)}); "
            "give a folder that holds one, or a hub id where there is a network"
        ) from None


def config_of(source: str) -> dict[str, Any]:
    """A local folder's config.json; empty for a hub id, which is not downloaded for this."""
    path = Path(source) / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); save or download the encoder again") from None
