"""The methods in PyTorch on the GPU, as released pruning code is written: float32 tensors, loops in Python.

Written for this benchmark to stand for such code; none of it is the authors'. Each gives the kept patches [B, N]
(PruneSID -1 for CLS), so that the share of the kernels' tokens which it finds can be stated beside its time.
"""

from __future__ import annotations

from typing import Any

import torch
from prunesid_op import randomised_selection

Tensor = Any


def prunesid(inputs: dict[str, Tensor], keep: int, **_: Any) -> Any:
    """torch.pca_lowrank with K columns, all groups' sweeps at once until nothing is left, budgets in Python."""
    return randomised_selection(inputs["features"], inputs["scores"], keep)


def svdprune(inputs: dict[str, Tensor], keep: int, *, rank: int, **_: Any) -> Tensor:
    """torch.linalg.svd of the centred features and a top-k of the leverages."""
    features = inputs["features"].float()
    left, _, _ = torch.linalg.svd(features - features.mean(1, keepdim=True), full_matrices=False)
    return left[:, :, :rank].square().sum(2).topk(keep).indices.sort().values


def vitcop(inputs: dict[str, Tensor], keep: int, *, grid: tuple[int, int], clusters: int = 0, **_: Any) -> Tensor:
    """A top-k; with clusters all distances, and labels handed down from token to token until every one has its own."""
    kept = inputs["scores"].topk(keep).indices.sort().values
    for image in range(len(kept)) if clusters else ():
        _labels(inputs["keys"][image].flatten(1)[kept[image]], kept[image], grid, clusters)
    return kept


def _labels(points: Tensor, kept: Tensor, grid: tuple[int, int], clusters: int) -> Tensor:
    count = len(points)
    distance = torch.cdist(points, points)
    density = torch.exp(-((distance / 8.0) ** 2)).sum(1)
    y, x = (kept // grid[1]).float() / grid[0], (kept % grid[1]).float() / grid[1]
    near = (y[:, None] - y[None]) ** 2 + (x[:, None] - x[None]) ** 2 <= 0.36
    denser = (density[None] >= density[:, None]) & near & ~torch.eye(count, dtype=torch.bool, device=points.device)
    delta, parent = torch.where(denser, distance, torch.inf).min(1)
    centers = (delta * density).topk(clusters).indices
    labels = torch.full((count,), -1, device=points.device)
    labels[centers] = torch.arange(clusters, device=points.device)
    for _ in range(count):
        missing = labels < 0
        if not missing.any():
            break
        handed = torch.where(missing, labels[parent], labels)
        if torch.equal(handed, labels):
            break
        labels = handed
    return labels


def nuwa(inputs: dict[str, Tensor], keep: int, *, grid: tuple[int, int], **_: Any) -> Tensor:
    """Top-k in regions and over all, then the weights of all patches for every collector, image by image."""
    kept_of = []
    for image in range(len(inputs["features"])):
        scores, features = inputs["scores"][image], inputs["features"][image].float()
        tokens = len(scores)
        regions = scores.view(grid[0] // 2, 2, grid[1] // 2, 2).transpose(1, 2).reshape(-1, 4)
        top = -(-4 * keep // tokens)
        best = torch.full_like(regions, -torch.inf).scatter(1, regions.topk(top).indices, 0.0)
        offered = scores + best.view(grid[0] // 2, grid[1] // 2, 2, 2).transpose(1, 2).reshape(-1)
        kept = offered.topk(keep).indices.sort().values
        collector = kept[scores[kept] < torch.quantile(scores[kept], 0.55)]
        similar = torch.nn.functional.normalize(inputs["similarity_features"][image], dim=1)
        place = torch.arange(tokens, device=scores.device)
        apart = ((collector[:, None] // grid[1] - place[None] // grid[1]) ** 2
                 + (collector[:, None] % grid[1] - place[None] % grid[1]) ** 2).float().sqrt()  # fmt: skip
        weights = (similar[collector] @ similar.T).clamp(min=0) * (1 - apart / 280**0.5).clamp(min=0)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
        weights[torch.arange(len(collector), device=scores.device), collector] = 1.0
        rows = features[kept]
        rows[torch.isin(kept, collector)] = weights @ features
        kept_of.append(kept)
    return torch.stack(kept_of)


def divprune(inputs: dict[str, Tensor], keep: int, **_: Any) -> Tensor:
    """The matrix of distances, then one argmax after the other, image by image."""
    kept_of = []
    for features in inputs["features"]:
        unit = torch.nn.functional.normalize(features.float(), dim=1)
        distance = 1 - unit @ unit.T
        order = [distance.topk(2, largest=False).values[:, 1].argmax()]
        nearest = distance[order[0]].clone()
        for _ in range(keep - 1):
            nearest[order[-1]] = -torch.inf
            order.append(nearest.argmax())
            nearest = torch.minimum(nearest, distance[order[-1]])
        kept_of.append(torch.stack(order).sort().values)
    return torch.stack(kept_of)


def cdpruner(inputs: dict[str, Tensor], keep: int, **_: Any) -> Tensor:
    """The kernel of relevance and cosines, then greedy rounds over all images at once."""
    unit = torch.nn.functional.normalize(inputs["features"].float(), dim=2)
    words = torch.nn.functional.normalize(inputs["text_embeds"], dim=2)
    relevance = (unit @ words.transpose(1, 2)).mean(2)
    low, high = relevance.amin(1, keepdim=True), relevance.amax(1, keepdim=True)
    relevance = (relevance - low + 1e-6) / (high - low)
    kernel = relevance[:, :, None] * (unit @ unit.transpose(1, 2)) * relevance[:, None]
    batch, tokens = relevance.shape
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    rows = torch.zeros(keep, batch, tokens, device=kernel.device)
    image, order = torch.arange(batch, device=kernel.device), []
    for turn in range(keep):
        best = gain.argmax(1)
        order.append(best)
        own = rows[:turn, image, best]
        row = kernel[image, best] - torch.einsum("tb,tbn->bn", own, rows[:turn])
        rows[turn] = row / gain[image, best].clamp(min=1e-12).sqrt()[:, None]
        gain = gain - rows[turn].square()
        gain[image, best] = -torch.inf
    return torch.stack(order, 1).sort(1).values


STYLES = {
    "prunesid": prunesid,
    "svdprune": svdprune,
    "vitcop": vitcop,
    "nuwa": nuwa,
    "divprune": divprune,
    "cdpruner": cdpruner,
}
ABOUT = {name: (function.__doc__ or "").split("\n")[0] for name, function in STYLES.items()}
