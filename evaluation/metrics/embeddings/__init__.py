"""The networks that metrics read, one file each; a file that defines a `Backend` is one, under the file's name."""

from ...libraries import members
from .backend import Backend, Embedder

__all__ = ["BACKENDS", "Backend", "Embedder"]

BACKENDS: dict[str, Backend] = dict(members(__name__, __path__, Backend))
