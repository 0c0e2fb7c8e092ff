"""Losses of `mini`: answers, and on the way there what patches show, what CLS saw, where nouns point."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mini_training import words
from mini_training.batches import Batch
from mini_training.model import WIDTH, Mini

NOTHING_WEIGHT = 0.25  # of patches without an item, which are most
PRESENCE_WEIGHT = 10.0
Figures = dict[str, float]


def vision_losses(
    model: Mini, visual: Tensor, cls: Tensor, last_cls: Tensor | None, batch: Batch
) -> tuple[Tensor, Figures]:
    """The sum of the losses on visual tokens [B, N, W] and CLS, and figures about them.

    A patch's token must point at the words of its colour and kind in the decoder's own embedding, so that finding and
    naming them is nearly the identity for the decoder.
    """
    z, table, heads = F.rms_norm(visual.float(), (WIDTH,)), model.embedding, model.heads
    colour = (z @ torch.cat([table[words.COLOUR_IDS], heads.no_colour]).t()).flatten(0, 1)
    kind = (z @ torch.cat([table[words.KIND_IDS], heads.no_kind]).t()).flatten(0, 1)

    def weights(logits: Tensor) -> Tensor:
        return torch.tensor([1.0] * (logits.shape[1] - 1) + [NOTHING_WEIGHT])

    on = batch.box[..., 0] >= 0
    places = heads.box(z[on]).float().view(-1, 4, WIDTH)
    steps = torch.stack([places[:, i] @ table[ids].t() for i, ids in enumerate(words.COORDINATE_IDS)], 1)
    centre = heads.centre(z)[..., 0].float()
    losses = {
        "colour": F.cross_entropy(colour, batch.colour.flatten(), weights(colour)),
        "kind": F.cross_entropy(kind, batch.kind.flatten(), weights(kind)),
        "box": F.cross_entropy(steps.flatten(0, 1), batch.box[on].flatten(), label_smoothing=0.05),
        "centre": 4 * F.binary_cross_entropy_with_logits(centre, batch.centre, pos_weight=torch.tensor(8.0)),
        "cls": PRESENCE_WEIGHT * F.binary_cross_entropy_with_logits(heads.cls(cls).float(), batch.presence),
    }
    if last_cls is not None:
        presence = heads.last_cls(last_cls).float()
        losses["last_cls"] = PRESENCE_WEIGHT * F.binary_cross_entropy_with_logits(presence, batch.presence)
    flat = on.flatten()
    figures = {f"loss_{name}": float(loss.detach()) for name, loss in losses.items()}
    figures["patch_colour"] = float((colour.argmax(-1) == batch.colour.flatten())[flat].float().mean())
    figures["patch_kind"] = float((kind.argmax(-1) == batch.kind.flatten())[flat].float().mean())
    figures["patch_box_steps"] = float((steps.argmax(-1) - batch.box[on]).abs().float().mean())
    return torch.stack(list(losses.values())).sum(), figures


def text_losses(model: Mini, visual: Tensor, batch: Batch) -> tuple[Tensor, Figures, dict[str, tuple[int, int]]]:
    """The loss of the answers with those of the nouns, figures, and by task how many answers are right, of how many.

    Answers are read with the true tokens before them; for one-token answers that is what the model would say.
    """
    middle, hidden = model.read(batch.ids, batch.turn, batch.place, model.see(visual))
    said = batch.labels >= 0
    wanted = batch.labels[said]
    logits = model.logits(hidden[said])
    answers = F.cross_entropy(logits, wanted)
    picture, token, there, box = batch.named[:, 0], batch.named[:, 1], batch.named[:, 2], batch.named[:, 3:]
    nouns = F.rms_norm(middle[picture, token].float(), (WIDTH,))
    point = model.heads.point(nouns).float().view(-1, 4, words.STEPS + 1)
    seen = there > 0
    pointing = F.cross_entropy(point[seen].flatten(0, 1), box[seen].flatten(), label_smoothing=0.05)
    presence = F.binary_cross_entropy_with_logits(model.heads.there(nouns)[:, 0].float(), there.float())
    figures = {
        "loss_answers": float(answers.detach()),
        "loss_pointing": float(pointing.detach()),
        "loss_there": float(presence.detach()),
    }
    figures["noun_box_steps"] = float((point[seen].argmax(-1) - box[seen]).abs().float().mean())
    guess = torch.full_like(batch.labels, words.IGNORED)
    guess[said] = logits.argmax(-1)
    return answers + 0.25 * pointing + 0.25 * presence, figures, _right(batch, guess)


def _right(batch: Batch, guess: Tensor) -> dict[str, tuple[int, int]]:
    """Right answers and all answers by task. A box counts where no side is off by more than a step."""
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for picture, task, at, length in batch.answers:
        # the label of a token stands where the token before it is read
        got, true = (x[picture, at - 1 : at - 1 + length] for x in (guess, batch.labels))
        good = (got - true).abs().max() <= (1 if task == "grounding" else 0)
        right[task][0] += int(good)
        right[task][1] += 1
    return {task: (good, number) for task, (good, number) in right.items()}
