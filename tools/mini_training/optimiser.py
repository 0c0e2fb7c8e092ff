"""Muon for the matrices of the layers, Adam for everything else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from mini_training.model import Mini

MOMENTUM, DECAY = 0.95, 0.05
CLIP = 1.0  # of the gradient's norm over Adam's parameters; Muon's steps have a norm of their own


def _of_vision(name: str) -> bool:
    return name.startswith(("vision.", "heads.cls", "heads.last_cls"))


class Optimiser:
    """Keeps the state of both; `step` takes factors on the learning rates."""

    def __init__(self, model: Mini, *, muon_rate: float, adam_rate: float):
        named = list(model.named_parameters())
        self._matrices = [(n, p) for n, p in named if p.dim() == 2 and ("layers." in n or n.startswith("linear_"))]
        chosen = {id(p) for _, p in self._matrices}
        self._rest = [(n, p) for n, p in named if id(p) not in chosen]
        self._muon_rate, self._adam_rate = muon_rate, adam_rate
        self._momentum: dict[str, Tensor] = {}
        groups = [{"params": [p], "lr": 0.0} for _, p in self._rest]
        self._adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, foreach=False)

    def step(self, scale: float, vision_scale: float) -> None:
        """One step with learning rates times `scale`, those of the vision tower times `vision_scale` too; then clears
        the gradients."""
        nn.utils.clip_grad_norm_([p for _, p in self._rest], CLIP)
        for group, (name, _) in zip(self._adam.param_groups, self._rest, strict=True):
            group["lr"] = self._adam_rate * scale * (vision_scale if _of_vision(name) else 1.0)
        self._adam.step()
        self._muon(scale, vision_scale)
        for _, parameter in (*self._matrices, *self._rest):
            parameter.grad = None

    @torch.no_grad()
    def _muon(self, scale: float, vision_scale: float) -> None:
        alike: dict[torch.Size, list[tuple[str, nn.Parameter, Tensor]]] = defaultdict(list)
        for name, parameter in self._matrices:
            if parameter.grad is None:
                continue
            kept = self._momentum.setdefault(name, torch.zeros_like(parameter))
            kept.lerp_(parameter.grad, 1 - MOMENTUM)
            alike[parameter.shape].append((name, parameter, parameter.grad.lerp(kept, MOMENTUM)))
        for (rows, columns), members in alike.items():
            steps = orthogonal(torch.stack([update for _, _, update in members]))
            for (name, parameter, _), update in zip(members, steps, strict=True):
                rate = self._muon_rate * scale * (vision_scale if _of_vision(name) else 1.0)
                parameter.mul_(1 - rate * DECAY).add_(update.float(), alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Any]:
        return {"adam": self._adam.state_dict(), "momentum": self._momentum}

    def load(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state["adam"])
        self._momentum = state["momentum"]


def orthogonal(x: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns to [M, rows, columns], about: Newton-Schulz, five steps.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    tall = x.shape[1] > x.shape[2]
    y = (x.transpose(1, 2) if tall else x).to(torch.bfloat16)
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = y @ y.transpose(1, 2)
        y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
    return y.transpose(1, 2) if tall else y
