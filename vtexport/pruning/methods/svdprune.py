"""SVD-Prune (arXiv 2604.11530): keep the tokens of the largest statistical leverage on the leading singular directions.

The authors have released no code, and only the abstract and descriptions by others were at hand: energy, centring and
feature space are options, and their defaults are unverified. Centring follows from the abstract, which speaks of the
dominant global variance.
"""

from __future__ import annotations

import dataclasses

from vtexport.errors import UsageError
from vtexport.pruning.budget import check_keep
from vtexport.pruning.method import Method
from vtexport.pruning.ops.svdprune import EXACT_RANK, SMALLEST_SET, SVDPrune
from vtexport.pruning.options import Option, Options, settings_of
from vtexport.pruning.registry import register
from vtexport.pruning.schedule import PlacedOp, Schedule
from vtexport.pruning.types import Limit, ModelShape, after_space


@register
class SVDPruneMethod(Method):
    """One op, before the projector or behind it."""

    name = "svdprune"
    title = "Beyond Attention Scores: SVD-Based Vision Token Pruning for Efficient Vision-Language Models"
    arxiv = "2604.11530"
    acts = "between the vision tower and the projector, or behind the projector with space projected"
    budget = "visual tokens per image; CLS is never kept. In mode leverage the most that an image may take"
    op = SVDPrune
    options = settings_of(
        SVDPrune,
        after={
            "center": [
                Option(
                    "space",
                    kind=str,
                    default="vision",
                    choices=("vision", "projected"),
                    about="features before the projector or behind it",
                )
            ]
        },
    )

    def first_op(self, options: Options, model: ModelShape, keep: int | None) -> PlacedOp:
        keep = check_keep(self.name, keep, largest=model.tokens, unit="patches")
        return PlacedOp(after_space(options["space"]), _op(options, model), model.tokens, keep)

    def plan(self, options: Options, model: ModelShape, keep: int | None) -> Schedule:
        schedule = super().plan(options, model, keep)
        op, keep = schedule.first.op, schedule.keep
        assert isinstance(op, SVDPrune)
        return dataclasses.replace(schedule, limits=_limits(op, model, keep), remarks=_remarks(op, model, keep))


def _op(options: Options, model: ModelShape) -> SVDPrune:
    changed = options.changed()
    for name in ("energy", "leverage"):
        if options[name] > 1:
            raise UsageError(f"{name}={options[name]:g} is not allowed; give a number above 0, at most 1")
    rank = options["rank"]
    if rank and "energy" in changed:
        raise UsageError(f"energy={options['energy']:g} and rank={rank} exclude each other; give one")
    if rank and options["rank_bound"] not in (None, rank):
        raise UsageError(f"rank_bound={options['rank_bound']} has no meaning for a fixed rank; leave it out")
    if options["mode"] == "budget" and "leverage" in changed:
        raise UsageError(f"leverage={options['leverage']:g} has no meaning in mode budget; give mode=leverage")
    # The most directions that are promised to be exact and can still rank the tokens.
    usual = max(1, min(EXACT_RANK, _most_rank(options["center"], model)))
    bound = rank or options.set_or("rank_bound", usual)
    if bound > model.tokens:
        name = "rank" if rank else "rank_bound"
        raise UsageError(f"{name}={bound} is not allowed; give a whole number from 1 to {model.tokens} (patches)")
    return SVDPrune.of(options, rank_bound=bound)


def _limits(op: SVDPrune, model: ModelShape, keep: int) -> tuple[Limit, ...]:
    found = []
    if not op.rank:  # a fixed rank is the same for every image: `_remarks` speaks of it, once
        few = _least_rank(op, keep)
        found += [
            # A bound below that is the same for every image, too.
            Limit("rank", least=min(few, op.rank_bound), warning=_too_few(few, keep)),
            Limit(
                "rank",
                most=_most_rank(op.center, model),
                warning=f"the directions span the whole space, so {_NOISE}",
            ),
            Limit(
                "energy",
                least=op.energy * (1 - 1e-6),
                warning=f"less than the {op.energy:g} asked for, which needs more than "
                f"{op.rank_bound} directions; build with a larger rank_bound",
            ),
        ]
    if op.mode == "leverage":
        text = f"less than the {op.leverage:g} asked for: the set needs more tokens than keep allows"
        found.append(Limit("leverage", least=op.leverage * (1 - 1e-6), warning=text))
    return tuple(found)


def _remarks(op: SVDPrune, model: ModelShape, keep: int) -> tuple[str, ...]:
    found = ["no code of SVD-Prune's authors is public, so energy, centring and feature space are unverified"]
    if not op.rank:
        found.append(
            f"the graph computes {op.rank_bound} directions; where an image needs more for an energy of "
            f"{op.energy:g} it uses these and `vtexport run` warns (set rank_bound to change it)"
        )
    if op.center == "none":
        found.append(
            "without centring the first direction is about the features' common mean, which tells no tokens apart"
        )
    few = _least_rank(op, keep)
    if op.rank_bound < few:
        name = "rank" if op.rank else "rank_bound"
        found.append(f"{name} is {op.rank_bound}: {_too_few(few, keep)}")
    if op.rank > _most_rank(op.center, model):
        found.append(f"at rank {op.rank} {_NOISE}; give another rank")
    if op.rank_bound > EXACT_RANK:
        found.append(f"beyond {EXACT_RANK} directions float32 does not promise the same tokens on every runtime")
    if op.mode == "leverage":
        found.append(f"images take between {min(SMALLEST_SET, keep)} and {keep} tokens each")
    return tuple(found)


_NOISE = "the ranking of the tokens is noise"


def _least_rank(op: SVDPrune, keep: int) -> int:
    """The fewest directions on which `keep` tokens can all lie on different sides: k directions have 2^k of them.

    A single direction never suffices. Without centring all tokens are about on one side of the first.
    """
    return max(2, (keep - 1).bit_length() + int(op.center == "none"))


def _too_few(few: int, keep: int) -> str:
    return (
        f"it takes {few} directions for {keep} tokens to differ in the sides they are on; "
        "build with a larger energy, rank or rank_bound"
    )


def _most_rank(center: str, model: ModelShape) -> int:
    """The largest rank at which leverages can differ. Centring takes one dimension from the tokens' space."""
    return model.tokens - 1 - int(center == "feature-mean")
