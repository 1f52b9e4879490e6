"""A stage that is trained on one batch alone."""

from typing import Any

import torch

from audioldm2_pl.seeds import SharedRandom


def overfit(stage: Any, batch: dict[str, Any], num_steps: int, learning_rate: float, num_draws: int = 1) -> list[float]:
    """The loss of each step of Adam; the stage's own draws repeat after `num_draws` steps."""
    optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=learning_rate)
    losses = []
    for step in range(num_steps):
        stage.shared = SharedRandom(step % num_draws)
        loss = stage.total(stage.losses(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
