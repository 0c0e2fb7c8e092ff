"""The image's layout in a manifest: the views that the vision graph takes, and the rule by which an image becomes them.

A *view* is one picture of fixed size: the whole image, or a tile of it. An *arrangement* is a set of views that the
vision graph takes together, so one shape of its input. LLaVA-1.5 has one arrangement of one square view. Models that
cut an image into tiles have an arrangement for every number of rows and columns, and models that take an image in its
own size one for every size that the bundle was built for.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class View(msgspec.Struct, kw_only=True):
    """One picture as the vision graph takes it, and the visual tokens that it becomes.

    `rows` and `columns` of visual tokens are those of patches where none are merged. `text_before` and `text_after` are
    token ids that stand around its visual tokens in the prompt, such as the markers of a tile.
    """

    height: Positive  # pixels
    width: Positive
    grid_height: Positive  # patches
    grid_width: Positive
    rows: Positive  # visual tokens
    columns: Positive
    frames: Positive = 1  # of a video, after those that one patch spans were merged
    tile: tuple[Count, Count] | None = None  # row and column among the tiles; None for the image as a whole
    text_before: list[Count] = []
    text_after: list[Count] = []

    @property
    def tokens(self) -> int:
        """Visual tokens, before pruning."""
        return self.frames * self.rows * self.columns


class Arrangement(msgspec.Struct, kw_only=True):
    """Views that the vision graph takes together, in the order in which their tokens enter the prompt."""

    name: str  # such as "336x336", or "2x3" for two rows of three tiles
    views: Annotated[list[View], msgspec.Meta(min_length=1)]

    @property
    def tokens(self) -> int:
        """Visual tokens of all views before pruning, separators not counted."""
        return sum(view.tokens for view in self.views)


class Separator(msgspec.Struct, kw_only=True):
    """Rows between visual tokens, which no budget counts.

    They are the tokens `token_ids`, or a learned row that the prune graph adds where there are none. `after` names what
    each of them stands behind: every row of the tokens of all tiles together, every view, or the whole image.
    """

    after: Literal["row", "view", "image"]
    token_ids: list[Count] = []


class FixedSize(msgspec.Struct, kw_only=True, tag_field="rule", tag="fixed"):
    """Every image becomes the one arrangement, by the steps of the manifest's `image` alone."""


class Tiles(msgspec.Struct, kw_only=True, tag_field="rule", tag="tiles"):
    """An image is resized onto one of the arrangements and cut into tiles; each view then takes the steps of `image`.

    `choose` is the rule by which the arrangement is found: the one that shows most of the image and wastes least
    (LLaVA-NeXT's `select_best_resolution`), the nearest aspect ratio (InternVL), or as many tiles as the longer side,
    scaled to `longest_edge`, fills (Idefics3).
    """

    choose: Literal["best_resolution", "nearest_ratio", "longest_edge"]
    fit: Literal["pad", "stretch"]
    unpad: bool = False  # rows and columns of visual tokens that show padding alone are left out
    longest_edge: Positive | None = None  # pixels


class NativeSize(msgspec.Struct, kw_only=True, tag_field="rule", tag="native"):
    """An image keeps its aspect ratio: both sides become multiples of `multiple` within these bounds.

    The arrangement is the one of that size, or the nearest that the bundle has.
    """

    multiple: Positive  # pixels
    least_pixels: Positive
    most_pixels: Positive


class Vision(msgspec.Struct, kw_only=True):
    """The vision tower and the layout of an image. Sizes have the names of transformers' configurations."""

    hidden_size: Positive
    patch_size: Positive  # pixels
    merge_size: Positive = 1  # patches a side that one visual token is made of
    cls_rows: Count  # of `features`, before the patches
    arrangements: Annotated[list[Arrangement], msgspec.Meta(min_length=1)]
    resize: FixedSize | Tiles | NativeSize
    separators: list[Separator] = []

    def separator_rows(self, arrangement: Arrangement) -> int:
        """Rows of an image that stand between its visual tokens, where no padding is left out."""
        tiles = [view for view in arrangement.views if view.tile is not None]
        rows_of_tiles = {view.tile[0]: view.rows for view in tiles if view.tile is not None}
        times = {"row": sum(rows_of_tiles.values()), "view": len(arrangement.views), "image": 1}
        return sum(times[each.after] * max(1, len(each.token_ids)) for each in self.separators)

    @property
    def largest(self) -> Arrangement:
        """The arrangement with most visual tokens; the first of them."""
        return max(self.arrangements, key=lambda each: each.tokens)
