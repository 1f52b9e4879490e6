"""What one sees of a stage while it trains: a bar on a terminal, elsewhere a line now and then."""

import multiprocessing
import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} batches, {elapsed}, {remaining} left{postfix}"
SECONDS_A_LINE = 30.0
SECONDS_A_LOSS = 0.5  # to read a loss waits for the GPU


class StageProgress(L.Callback):
    """Batches of a stage, time left and the losses that it logs with `prog_bar`; of rank 0.

    Stages side by side would write over each other's bars: they write lines.
    """

    def __init__(self, name: str, batches: int):
        self.name = name
        self.batches = batches
        self.in_lines = not sys.stdout.isatty() or multiprocessing.parent_process() is not None
        self.bar: tqdm | None = None
        self.first = 0  # batches that were done before this call
        self.begun = self.last = 0.0  # time of the first batch, of the last line or loss

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first = trainer.fit_loop.batch_idx + 1
        self.begun = self.last = time.perf_counter()
        if trainer.is_global_zero and not self.in_lines:
            self.bar = tqdm(
                desc=self.name, total=self.batches, initial=self.first, bar_format=BAR, file=sys.stdout,
                dynamic_ncols=True, smoothing=0.1,
            )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        since = time.perf_counter() - self.last
        if self.bar is not None:
            if since > SECONDS_A_LOSS:
                self.bar.set_postfix(losses_of(trainer), refresh=False)
                self.last = time.perf_counter()
            self.bar.update()
        elif trainer.is_global_zero and since > SECONDS_A_LINE:
            self.last = time.perf_counter()
            print(self.line(batch_idx + 1, losses_of(trainer)), flush=True)

    def line(self, num_done: int, losses: dict[str, str]) -> str:
        pace = (time.perf_counter() - self.begun) / max(1, num_done - self.first)
        left = tqdm.format_interval(pace * (self.batches - num_done))
        shown = "".join(f", {name}={value}" for name, value in losses.items())
        return f"{self.name}: {num_done} of {self.batches} batches, {left} left{shown}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()  # what is said next begins a line

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def losses_of(trainer: L.Trainer) -> dict[str, str]:
    return {name.removeprefix("train/"): f"{float(value):.3g}" for name, value in trainer.progress_bar_metrics.items()}
