"""Optimisation profiles: the ranges of lengths that an engine of a graph is built for."""

from __future__ import annotations

from vtexport.backends.record import TEXT_TOKENS, Profile
from vtexport.bundle.manifest import Graph, Manifest
from vtexport.errors import UsageError

_USUAL_TEXT = 64
_USUAL_ANSWER = 128
# Decode runs one new token at a time. A profile fixed at one makes TensorRT-RTX 1.7 merge the products of one input and
# store their weights a second time (98 MB for 57 MB of weights); with a range from 1 to 2 it stores them once.
_DECODE_NEW = 1, 1, 2
_USUAL_QUESTION = 16


def profiles(manifest: Manifest, graph: Graph, text_tokens: int = TEXT_TOKENS) -> list[Profile]:
    """The profiles of one graph: none where all its shapes are fixed, one for a prune graph that reads the question.

    A decoder graph has a prefill for each number of visual tokens that a plan gives it, and decode; a pruning step
    between two of them has the prefills alone.

    Args:
        manifest: of the bundle, whose plans give the budgets.
        graph: one of its graphs.
        text_tokens: the longest text that a prefill takes with the image, and so the longest question; cut to the
            model's positions.

    Raises:
        UsageError: `text_tokens` is not positive, or an image alone leaves no place for text.
    """
    if text_tokens < 1:
        raise UsageError(f"text_tokens is {text_tokens}; give a whole number from 1")
    lengths = {dim for tensor in graph.inputs for dim in tensor.shape if isinstance(dim, str)}
    if not lengths:
        return []
    most = manifest.decoder.max_position_embeddings
    if lengths == {"M"}:
        last = min(text_tokens, most)
        return [Profile(name="question", shapes=_shapes(graph, M=(1, min(_USUAL_QUESTION, last), last)))]
    entering = _visual_tokens(manifest, graph)
    found = []
    for visual in entering:
        if visual >= most:
            raise UsageError(f"{visual} visual tokens leave no place for text in the model's {most} positions")
        last = min(visual + text_tokens, most)
        new = visual + 1, min(visual + _USUAL_TEXT, last), last
        found.append(Profile(name=f"prefill-{visual}", shapes=_shapes(graph, S=new, P=(0, 0, 0))))
    if "P" not in lengths:
        return found
    usual = max(entering) + _USUAL_TEXT + _USUAL_ANSWER
    past = 1, min(usual, most - 1), most - 1
    return [*found, Profile(name="decode", shapes=_shapes(graph, S=_DECODE_NEW, P=past))]


def _visual_tokens(manifest: Manifest, graph: Graph) -> list[int]:
    """The numbers of visual tokens with which the plans run a graph of the language model, ascending."""
    found = set()
    for plan in manifest.plans:
        counts = [plan.visual_tokens, *(step.keep for step in plan.steps)]
        for stages in (plan.graphs.decoder, plan.graphs.prune_llm):
            for names, count in zip(stages, counts, strict=False):
                found |= {count for name in names if manifest.graphs[name] is graph}
    return sorted(found)


def _shapes(graph: Graph, **ranges: tuple[int, int, int]) -> dict[str, list[list[int]]]:
    """Each varying input with the least, usual and largest length put in for its letter.

    S new and P past tokens of a decoder graph, M tokens of the question of a prune graph.
    """
    return {
        tensor.name: [
            [dim if isinstance(dim, int) else ranges[dim][place] for dim in tensor.shape] for place in range(3)
        ]
        for tensor in graph.inputs
        if any(isinstance(dim, str) for dim in tensor.shape)
    }
