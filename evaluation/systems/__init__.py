"""Ours and our rivals, one file each. A file that defines an `Opener` is found by itself: nothing else lists it."""

from ..libraries import members
from .system import Opener, Request, System

__all__ = ["SYSTEMS", "Opener", "Request", "System"]

SYSTEMS: dict[str, Opener] = {opener.name: opener for _, opener in members(__name__, __path__, Opener)}
