"""Which clips could not be used: counted over all ranks and workers, listed in a file, and a limit to how many."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audioldm2_pl.errors import UserError
from audioldm2_pl.shards.format import BadClip
from audioldm2_pl.shards.reader import ShardFolder

MAX_BAD_FRACTION = 0.01


class Quarantine:
    """The bad clips of some folders of shards, each counted once.

    Every process appends the clips that it meets to the file at `path`, a JSON line each: {"shard", "clip": its
    number there, "key", "reason"}; together the lines are the count that all go by. Without a path each process
    knows its own only. The limit is a share of all the folders' clips, not of those read so far, for a shard's clips
    follow each other, and one lost shard in a hundred is no cause to stop at its first clip.
    """

    def __init__(
        self,
        folders: Sequence[ShardFolder],
        max_bad_fraction: float = MAX_BAD_FRACTION,
        path: str | Path | None = None,
    ):
        self.num_clips = sum(sum(folder.counts) for folder in folders)
        self.shards = {folder.shard_path(s) for folder in folders for s in range(len(folder.counts))}
        self.max_bad_fraction = max_bad_fraction
        self.path = Path(path) if path else None
        self.position = 0  # bytes of the file that have been read
        self.own: set[tuple[str, int]] = set()  # what this process has met
        self.bad: dict[tuple[str, int], str] = {}  # what is known of all: (shard, clip) -> reason

    def add(self, folder: ShardFolder, shard: int, clip: int, bad: BadClip) -> None:
        """Counts a clip. Raises UserError with which there are more than `max_bad_fraction`."""
        path = folder.shard_path(shard)
        if (path, clip) in self.own:
            return
        self.own.add((path, clip))
        self.bad[path, clip] = bad.reason
        if self.path:
            self.write({"shard": path, "clip": clip, "key": bad.key, "reason": bad.reason})
            self.refresh()
        if len(self.bad) > self.max_bad_fraction * self.num_clips:
            where = f"; {self.path} lists them, delete it once the shards are mended" if self.path else ""
            raise UserError(
                f"{path}: {bad}; {len(self.bad)} of {self.num_clips} clips are bad, more than data.max_bad_fraction="
                f"{self.max_bad_fraction:g} allows; {folder.advice}{where}"
            )

    def write(self, record: dict[str, Any]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(json.dumps(record).encode() + b"\n")  # one call: processes do not mix their lines
        except OSError as error:
            raise UserError(f"{self.path}: a bad clip cannot be listed ({error}); make room there") from None

    def refresh(self) -> None:
        """Reads what has been appended by all processes."""
        if self.path is None or not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.position)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):  # half-written: next time
                break
            self.position += len(line)
            try:
                record = json.loads(line)
                if record["shard"] in self.shards:
                    self.bad[record["shard"], int(record["clip"])] = str(record["reason"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue

    def summary(self) -> str:
        """One line with the number of bad clips by reason; empty where there are none."""
        self.refresh()
        if not self.bad:
            return ""
        reasons = Counter(reason.partition(" (")[0] for reason in self.bad.values())
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        where = f"; listed in {self.path}" if self.path else ""
        return f"{len(self.bad)} of {self.num_clips} clips left out: {listed}{where}"
