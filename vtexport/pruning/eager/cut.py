"""Columns that a prefill with images leaves out of the sequence, kept on the cache that it fills.

transformers goes on counting the unpruned sequence: its token ids, attention masks and position ids have a column for
every placeholder. A cache of a pruned prefill has fewer rows. `Cut` is what turns the one into the other, in every
later pass on the same cache: decoding, candidates of assisted generation, a second turn of the conversation.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch

from vtexport.errors import InputError, UsageError
from vtexport.pruning.eager.encode import Encoded
from vtexport.pruning.eager.steps import StepState

_NAME = "_vtexport_cut"  # attribute of a cache
ANEW = "give the whole conversation with a new cache"


@dataclass
class Cut:
    """The columns that one prefill left out.

    Attributes:
        owner: Number of the `apply` that did it.
        columns: [B, k] int64, the columns that were kept, of the first `length` of the unpruned sequence.
        length: Columns up to the last placeholder of all rows. Behind it nothing is left out.
        first: Column of the first placeholder of all rows.
        next: [B] int64, the position id of the column `length` in the unpruned sequence.
        shift: Position ids that the images of a row gave up.
        padded: Whether the prompt had padding.
        steps: Where the method prunes inside the language model.
    """

    owner: int
    columns: torch.Tensor
    length: int
    first: int
    next: torch.Tensor
    shift: int
    padded: bool
    steps: StepState | None = None

    def keep_on(self, cache: Any) -> None:
        """Stores it as an attribute of `cache`, so that a deep copy of the cache has it, too."""
        setattr(cache, _NAME, self)
        cache.crop = types.MethodType(_crop, cache)

    def unpruned(self, cached: int) -> int:
        """Columns of the unpruned sequence that `cached` rows of the cache stand for."""
        return self.length + cached - self.columns.shape[1]

    @torch.compiler.disable  # lengths that grow with every pass
    def arguments(
        self, cached: int, shape: tuple[int, int], mask: torch.Tensor | None, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Attention mask [B, cached + n] and position ids [B, n] of a later pass with n new tokens.

        Args:
            cached: Rows of the cache.
            shape: B and n.
            mask, positions: As the caller counts, over the unpruned sequence; either may be None.

        Raises:
            UsageError: They do not fit the cache.
        """
        batch, new = shape
        columns, first = self._for_batch(batch)
        past = self.unpruned(cached)
        if mask is not None:
            check_mask(mask, batch, past + new)
        following = first[:, None] + (cached - columns.shape[1]) + torch.arange(new, device=first.device)
        if positions is None:
            padded = mask is not None and not bool(mask.all())
            positions = count_positions(mask, following, past + new)[:, -new:] if padded else following
        elif mask is None and not self.padded and not torch.equal(positions.expand(batch, -1), following):
            raise UsageError(
                f"the cache stands for {past} tokens of the unpruned prompt, so the next position ids are "
                f"{int(following[0, 0])} to {int(following[0, -1])}, not {int(positions[0, 0])} to "
                f"{int(positions[0, -1])}; give the tokens behind the cache and no others"
            )
        if mask is not None:
            mask = torch.cat([mask[:, : self.length].gather(1, columns), mask[:, self.length :]], dim=1)
        return mask, positions - self.shift

    def _for_batch(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`columns` and `next` for a cache whose rows were repeated or chosen since."""
        if len(self.columns) == batch:
            return self.columns, self.next
        if not bool((self.columns == self.columns[:1]).all() & (self.next == self.next[:1]).all()):
            raise UsageError(
                f"the cache was filled with {len(self.columns)} prompts of different padding and goes on with {batch}; "
                f"{ANEW}"
            )
        return self.columns[:1].expand(batch, -1), self.next[:1].expand(batch)


@torch.compiler.disable
def cut_of(cache: Any, owner: int) -> Cut | None:
    """The cut of the prefill that filled `cache`; None where it holds no pruned image.

    Raises:
        UsageError: Another `apply` filled it, or it was cropped into the images.
    """
    cut: Cut | None = getattr(cache, _NAME, None)
    if cut is None:
        return None
    cached = int(cache.get_seq_length())
    # Reset, or cropped down to the text before the first image. Where layers have lengths of their own, a crop takes as
    # many rows from each and leaves none of the shorter ones.
    if cached <= (0 if cut.steps is not None else cut.first):
        delattr(cache, _NAME)
        return None
    if cached < cut.columns.shape[1]:
        raise UsageError(f"the cache was cropped to {cached} rows, into the images that were pruned; {ANEW}")
    if cut.owner != owner:
        raise UsageError(f"the cache was filled under another apply(); {ANEW}")
    return cut


def _crop(cache: Any, size: int) -> None:
    """A cache's `crop`. transformers 5.6 asks for what is to be left, counted over the unpruned sequence; later
    versions ask for what is to go, as a negative number, and refuse anything else."""
    cut: Cut | None = getattr(cache, _NAME, None)
    if cut is not None and size > 0:
        left = size - cut.length + cut.columns.shape[1]
        if size < cut.length or cut.steps is not None:
            raise UsageError(
                f"a cache behind a pruned prompt of {cut.length} tokens cannot be cropped to {size}; {ANEW}"
            )
        size = left
    type(cache).crop(cache, size)


@dataclass(frozen=True)
class Prompts:
    """Prompts with images before pruning: which columns are placeholders, and what transformers counts.

    Attributes:
        is_image: [B, L] bool.
        images: Images of each row.
        tokens: Placeholders of an image.
        cached: Columns of text in front, in the cache already.
        mask: [B, cached + L], or None.
        positions: [B, L] int64.
    """

    is_image: torch.Tensor
    images: int
    tokens: int
    cached: int
    mask: torch.Tensor | None
    positions: torch.Tensor

    @torch.compiler.disable
    def cut(self, encoded: Encoded, owner: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Cut]:
        """Kept columns [B, L'] of these L, mask [B, cached + L'] and positions [B, L'] without what is left out."""
        keep, given_up = encoded.rows.shape[1], self.tokens - encoded.span
        visual = encoded.positions.to(self.positions.device)
        columns, ids = [], []
        for row, is_image in enumerate(self.is_image):
            slots = is_image.nonzero().flatten().reshape(self.images, self.tokens)
            dropped = torch.zeros_like(is_image)
            old, new = self.positions[row], self.positions[row].clone()
            for number, slot in enumerate(slots):
                dropped[slot[keep:]] = True
                new[slot[-1] + 1 :] = old[slot[-1] + 1 :] - (number + 1) * given_up
                new[slot[:keep]] = old[slot[0]] - number * given_up + visual[row * self.images + number]
            columns.append((~dropped).nonzero().flatten())
            ids.append(new[columns[-1]])
        kept = torch.stack(columns)
        places = self.is_image.any(0).nonzero().flatten()
        end = int(places[-1]) + 1
        before = torch.arange(self.cached, device=kept.device).expand(len(kept), -1)
        whole = torch.cat([before, self.cached + kept], dim=1)
        cut = Cut(
            owner=owner,
            columns=whole[:, : self.cached + end - self.images * (self.tokens - keep)],
            length=self.cached + end,
            first=self.cached + int(places[0]),
            next=self.positions[:, end - 1] + 1,
            shift=self.images * given_up,
            padded=self.mask is not None and not bool(self.mask.all()),
        )
        # Without a mask transformers takes gaps in position_ids for borders between packed sequences.
        mask = torch.ones_like(whole) if self.mask is None else self.mask.gather(1, whole)
        return kept, mask, torch.stack(ids), cut


@torch.compiler.disable
def images_per_row(is_image: torch.Tensor, images: int, tokens: int) -> int:
    """The number of `images` images of `tokens` visual tokens that each row of placeholders [B, L] takes.

    Raises:
        InputError: Their number does not fit, differs between rows, or text stands between placeholders of one image.
    """
    counts = is_image.sum(1).tolist()
    if not images or len(set(counts)) > 1 or sum(counts) != images * tokens or images % len(counts):
        raise InputError(
            f"{images} images of {tokens} visual tokens do not fit the placeholders in input_ids "
            f"({str(counts)[:60]} in its rows); every row takes the same number of images"
        )
    places = is_image.nonzero()[:, 1].reshape(images, tokens)
    if not bool((places[:, -1] - places[:, 0] == tokens - 1).all()):
        raise InputError(
            f"the {tokens} placeholders of an image do not stand side by side in input_ids; "
            "let transformers' processor expand each <image>"
        )
    return images // len(is_image)


def check_mask(mask: Any, batch: int, columns: int) -> None:
    """Refuses an attention mask that has not one column for each token of the unpruned sequence.

    Raises:
        UsageError: With both shapes.
    """
    shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
    if shape != [batch, columns]:
        raise UsageError(
            "a pruned model takes attention_mask as [batch, length] of the unpruned sequence, here "
            f"[{batch}, {columns}], not {shape}"
        )


def count_positions(mask: torch.Tensor | None, like: torch.Tensor, columns: int) -> torch.Tensor:
    """Position ids [B, columns] of an unpruned sequence, as transformers counts them: padding does not count."""
    if mask is None:
        return torch.arange(columns, device=like.device).expand(like.shape[0], -1)
    return (mask.long().cumsum(1) - 1).clamp(min=0)
