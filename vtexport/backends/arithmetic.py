"""Arithmetic and memory traffic of a bundle's stages, counted from the matrices in its graphs.

A product of a matrix of E elements with R rows is 2 E R floating-point operations. Attention of Q queries over K keys,
W wide over all heads, is two products, 4 Q K W. Bytes are those of the weights and the cache, each read once. What is
left out is small beside them: norms, activation functions, softmax, values that go between layers, and the arithmetic
of the pruning op itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vtexport.backends.graph_file import GraphFile, Node
from vtexport.bundle.abilities import ChosenGraphs
from vtexport.bundle.manifest import Manifest, Plan
from vtexport.bundle.memory import kv_row_bytes

_PRODUCTS = ("Gemm", "MatMul", "Conv", "MatMulNBits")
# Between a stored weight and its product: what changes its type or its form and no element
_WRAPPERS = ("DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity")


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one run of a stage."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a graph.

    Attributes:
        node: Place of its product among the graph's nodes.
        elements: Number of its elements.
        columns: Width of the product.
        bytes: As stored, with the scales of a quantised one.
    """

    node: int
    elements: int
    columns: int
    bytes: int


def matrices(graph: GraphFile) -> list[Matrix]:
    """Weight matrices of a graph's products, in the order of their nodes; a Conv's is its kernel."""
    made_by = {name: node for node in graph.nodes for name in node.outputs}
    return [
        matrix
        for place, node in enumerate(graph.nodes)
        if node.op_type in _PRODUCTS
        for matrix in _matrix_of(place, node, graph, made_by)
    ]


def _matrix_of(place: int, node: Node, graph: GraphFile, made_by: dict[str, Node]) -> Iterator[Matrix]:
    if node.op_type == "MatMulNBits":  # com.microsoft: B is packed, K and N are attributes
        columns, depth = node.integers["N"], node.integers["K"]
        stored = sum(graph.tensors[name].bytes for name in node.inputs[1:] if name in graph.tensors)
        yield Matrix(place, columns * depth, columns, stored)
        return
    name, stored = node.inputs[1], 0
    while name not in graph.tensors:
        maker = made_by.get(name)
        if maker is None or maker.op_type not in _WRAPPERS:
            return  # a product of two computed values
        stored += sum(graph.tensors[scale].bytes for scale in maker.inputs[1:] if scale in graph.tensors)
        name = maker.inputs[0]
    tensor = graph.tensors[name]
    if len(tensor.shape) < 2:
        return
    rows_first = node.op_type == "Conv" or bool(node.integers.get("transB"))
    columns = tensor.shape[0] if rows_first else tensor.shape[-1]
    yield Matrix(place, tensor.elements, columns, stored + tensor.bytes)


def attentions(graph: GraphFile) -> int:
    """Number of whole attentions: `Attention` nodes, or pairs of products without a weight where it is written out."""
    fused = sum(node.op_type == "Attention" for node in graph.nodes)
    if fused:
        return fused
    weighted = {matrix.node for matrix in matrices(graph)}
    return sum(node.op_type == "MatMul" and place not in weighted for place, node in enumerate(graph.nodes)) // 2


@dataclass(frozen=True)
class Stages:
    """Work of the stages of one answer; `decode` is of one token, half the answer in the cache."""

    vision: Work
    prune: Work
    prefill: Work
    decode: Work

    def items(self) -> list[tuple[str, Work]]:
        """Names of the stages with their work, in their order."""
        return [("vision", self.vision), ("prune", self.prune), ("prefill", self.prefill), ("decode", self.decode)]


def count_stages(
    manifest: Manifest,
    plan: Plan,
    chosen: ChosenGraphs,
    read: Callable[[str], GraphFile],
    text_tokens: int,
    new_tokens: int,
) -> Stages:
    """Work of a plan's stages for one image, a question and an answer.

    Args:
        manifest: of the bundle.
        plan: one of its plans.
        chosen: the graphs that run.
        read: gives the graph of a name.
        text_tokens: of the question with its template.
        new_tokens: of the answer.
    """
    sizes, decoder = manifest.vision, manifest.decoder
    rows = [view.grid_height * view.grid_width * view.frames + sizes.cls_rows for view in sizes.largest.views]
    tokens = plan.tokens_by_layer()
    width = decoder.num_attention_heads * decoder.head_dim
    row_bytes = kv_row_bytes(manifest)
    prefill, decode = Work(), Work()
    for segment, name in zip(plan.segments, chosen.decoder, strict=True):
        graph, visual = read(name), tokens[segment.first_layer]
        new = visual + text_tokens
        prefill += decoder_work(graph, new, 0, width, row_bytes, decoder.vocab_size)
        decode += decoder_work(graph, 1, new + new_tokens // 2, width, row_bytes, decoder.vocab_size)
    for step, name in zip(plan.steps, chosen.prune_llm, strict=True):
        prefill += products(matrices(read(name)), step.tokens + text_tokens)
    return Stages(
        vision=vision_work(read(chosen.vision), rows, sizes.hidden_size),
        prune=prune_work(read(chosen.prune), sizes.largest.tokens + sizes.cls_rows, plan.visual_tokens),
        prefill=prefill,
        decode=decode,
    )


def products(weights: Sequence[Matrix], rows: float) -> Work:
    """Products of every matrix with as many rows."""
    return Work(2.0 * rows * sum(each.elements for each in weights), float(sum(each.bytes for each in weights)))


def attention(layers: int, pairs: float, width: int) -> Work:
    """Attention in some layers, over so many pairs of a query and a key."""
    return Work(4.0 * layers * pairs * width)


def vision_work(graph: GraphFile, rows: Sequence[int], width: int) -> Work:
    """A vision tower on views of so many rows (patches and CLS), each attending to its own view.

    The patch embedding is counted for CLS too, one row of hundreds.
    """
    pairs = sum(count * count for count in rows)
    return products(matrices(graph), sum(rows)) + attention(attentions(graph), pairs, width)


def prune_work(graph: GraphFile, rows: int, kept: int) -> Work:
    """A prune graph without its op: matrices before the op take all rows, those behind it the kept ones."""
    ops = [place for place, node in enumerate(graph.nodes) if node.op_type.startswith("Vtx")]
    op = ops[0] if ops else len(graph.nodes)
    weights = matrices(graph)
    before = products([each for each in weights if each.node < op], rows)
    return before + products([each for each in weights if each.node > op], kept)


def decoder_work(graph: GraphFile, new: int, past: int, width: int, row_bytes: int, vocab_size: int) -> Work:
    """A run of decoder layers on `new` rows behind `past` cached ones, causal; the head takes the last row alone.

    `row_bytes` are those of one row of keys and values in a layer, past ones read and new ones written.
    """
    weights = matrices(graph)
    head = [each for each in weights[-1:] if each.columns == vocab_size]  # of the last run of layers
    layers = attentions(graph)
    pairs = new * past + new * (new + 1) / 2
    work = products(weights[: len(weights) - len(head)], new) + products(head, 1)
    return work + attention(layers, pairs, width) + Work(0.0, float(layers * row_bytes * (past + new)))
