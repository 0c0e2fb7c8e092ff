"""The schema of a bundle's manifest.json: what was exported, from what, for which plans, every file with its hash.

docs/bundle.md describes it for readers in other languages and says which versions a reader opens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from vtexport.bundle.views import Count, Positive, Vision
from vtexport.dtypes import StoredType, TensorType, WeightType

SCHEMA_VERSION = 4
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
TEMPLATE_NAME = "chat_template.jinja"
# Of messages, as far as `Text.part_roles` names them; another one is taken as the user's.
ROLES = ("system", "developer", "user", "assistant", "tool")
# A manifest holds a line per file and tensor of a few graphs; a longer one is not ours.
MAX_MANIFEST_BYTES = 64 * 2**20

AboveZero = Annotated[float, msgspec.Meta(gt=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Variants = Annotated[list[str], msgspec.Meta(min_length=1)]
# Parts of a model whose weights a manifest counts; a head that is tied to the embedding has none of its own
Part = Literal["vision_tower", "connector", "embedding", "decoder", "lm_head"]


class Tensor(msgspec.Struct, kw_only=True):
    """A graph input or output; a dimension is a number or the name of a length that varies."""

    name: str
    shape: list[int | str]
    dtype: TensorType


class Needs(msgspec.Struct, kw_only=True):
    """Abilities that a runtime must have to run a graph, and to run it rightly."""

    ir_version: Positive
    opset: Positive  # of the standard domain
    operators: list[str]  # of the standard domain, each once
    types: list[TensorType]  # of inputs, outputs, weights, constants and casts, each once
    native_ops: list[str] = []  # pruning ops that stand in the graph without a function body


class Graph(msgspec.Struct, kw_only=True):
    """One ONNX file with its needs and its interface.

    `variant` tells the graphs of one stage apart: "modern" and "classic" spell the same arithmetic in two opsets,
    "native" leaves the function bodies of the pruning ops out. `arrangement` names the one arrangement of views that
    the graph is for, where it is not for all.
    """

    file: str
    variant: str = ""
    arrangement: str | None = None
    needs: Needs
    inputs: list[Tensor]
    outputs: list[Tensor]


class PlanGraphs(msgspec.Struct, kw_only=True):
    """The graphs that one plan runs, as keys of `Manifest.graphs`.

    Each stage lists its variants; a runtime takes the first whose needs it meets.
    """

    vision: Variants
    prune: Variants
    decoder: Annotated[list[Variants], msgspec.Meta(min_length=1)]  # by segment
    prune_llm: list[Variants] = []  # by step

    @property
    def stages(self) -> list[list[str]]:
        """The variants of every stage, in the order in which the stages run."""
        return [self.vision, self.prune, *self.decoder, *self.prune_llm]


class Segment(msgspec.Struct, kw_only=True):
    """A run of decoder layers exported as one graph."""

    first_layer: Count
    layers: Positive


class Step(msgspec.Struct, kw_only=True):
    """Pruning inside the language model, between two segments, in prefill only.

    `positions` are the position ids of the layers after it: "original" keeps each row's own; "compacted" numbers rows
    through, and decoding goes on from there; "official" are the rows' places before the step, in prefill alone.
    """

    layer: Positive  # the first layer after it
    tokens: Positive  # visual tokens before
    keep: Positive  # and after
    op: str
    positions: Literal["original", "compacted", "official"]


class ReportLimit(msgspec.Struct, kw_only=True):
    """Bounds of a reported number; where an image's is outside, a runtime shows `warning`."""

    warning: str
    least: float | None = None
    most: float | None = None


class Plan(msgspec.Struct, kw_only=True):
    """One way to run the bundle: a method with its parameters and budget."""

    name: str
    method: str
    parameters: dict[str, Any]
    paper: str | None
    keep: Positive  # the budget asked for: visual tokens per image that enter the LLM, on average over its layers
    visual_tokens: Positive  # the most rows of `image_features`, separators included
    segments: Annotated[list[Segment], msgspec.Meta(min_length=1)]  # of the decoder, cut at the steps
    steps: list[Step] = []
    # Of the kept tokens: "contiguous" numbers them through, "original" leaves each its place among all of the image's
    positions: Literal["contiguous", "original"]
    graphs: PlanGraphs
    # Outputs [1] of the prune graph that tell of an image. `count` is how many rows from the front a runtime uses.
    reports: dict[str, list[ReportLimit]] = {}
    command: str  # that added the plan
    created_at: str

    def graph_names(self) -> set[str]:
        """Keys of `Manifest.graphs` that the plan may run."""
        return {name for variants in self.graphs.stages for name in variants}

    def tokens_by_layer(self) -> list[int]:
        """Visual tokens in each decoder layer."""
        counts = [self.visual_tokens, *(step.keep for step in self.steps)]
        return [count for count, segment in zip(counts, self.segments, strict=True) for _ in range(segment.layers)]


class AdaptivePlan(msgspec.Struct, kw_only=True):
    """Plans of one method at several budgets, of which each image gets one (`vtexport.runtime.adaptive`)."""

    name: str
    plans: Annotated[list[str], msgspec.Meta(min_length=2)]  # by ascending budget
    mean: Positive  # that the budgets of the images it is set by come to on average, as near as they can
    command: str
    created_at: str


class StoredTensor(msgspec.Struct, kw_only=True):
    """Place of a tensor's bytes, for readers that map the file."""

    file: str
    offset: Count  # bytes from the start of the file
    shape: list[Positive]
    dtype: WeightType


class StoredWeights(msgspec.Struct, kw_only=True):
    """Weights of one part of the model that are stored alike."""

    dtype: StoredType
    block_size: Positive | None = None  # values along the input width that share a scale, where they are quantised
    tensors: Count
    bytes: Count


class PositionIds(msgspec.Struct, kw_only=True):
    """Position ids of the language model's rows.

    "sequential" has one id a row. "mrope" has one on each of three `axes` (time, height, width): of text all three are
    alike, a visual token has its frame, row and column, and text goes on behind as many as the view has rows or
    columns, whichever are more (Qwen2-VL, arXiv 2409.12191, section 2.1, as transformers does it). `visual_positions`
    of a prune graph are [axes, N], counted from the image's place.
    """

    kind: Literal["sequential", "mrope"]
    axes: Positive


class ImagesPerPrompt(msgspec.Struct, kw_only=True, frozen=True):
    """Numbers of images that one prompt may hold; where `most` is None, the model's positions alone are the limit."""

    least: Count = 0
    most: Positive | None = None

    def take(self, count: int) -> bool:
        """True where a prompt may hold `count` images."""
        return self.least <= count and (self.most is None or count <= self.most)


class Image(msgspec.Struct, kw_only=True):
    """Steps from an upright RGB image to `pixel_values` [1, 3, H, W] float32, in this order; None leaves a step out.

    Transparency is composited on white before. The fields are those of transformers' image processor `processor`,
    read from the object that the library made of the checkpoint's files.
    """

    processor: str  # transformers' class, without the suffix of its backend: "CLIPImageProcessor"
    # Colour (0 to 255 a channel) of the borders that make the image square
    pad_to_square: Annotated[list[int], msgspec.Meta(min_length=3, max_length=3)] | None = None
    resize_shortest: Positive | None = None  # the shorter side's length, the aspect ratio kept
    resize_height: Positive | None = None  # or both sides' lengths
    resize_width: Positive | None = None
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
    crop_height: Positive | None = None  # centre crop; black where the image is smaller
    crop_width: Positive | None = None
    rescale: float  # 1.0 where values stay as they are
    mean: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]
    std: Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]


class Text(msgspec.Struct, kw_only=True):
    """The tokenizer's files, and what transformers decided about tokens and the chat template."""

    image_token: str
    image_token_id: Count
    bos_token: str | None
    special_tokens: dict[str, str | list[str]] = {}  # transformers' special_tokens_map, variables of the template
    eos_token_ids: Annotated[list[Count], msgspec.Meta(min_length=1)]
    embedding: StoredTensor
    tokenizer: str = TOKENIZER_NAME
    chat_template: str = TEMPLATE_NAME
    chat_template_source: str = ""  # the checkpoint's file it is from, or "vtexport" for the family's own
    # Roles whose contents the template renders as parts alone: the runtime makes one text part of a string there
    part_roles: list[str] = []


class Generation(msgspec.Struct, kw_only=True):
    """The checkpoint's GenerationConfig: what transformers' `generate()` does when nothing else is asked.

    The first block are logits processors, which the runtime applies by default, too; the second is sampling, which it
    does only when asked (`sampling="checkpoint"`). Names and meanings are those of transformers.GenerationConfig, after
    its own defaults are filled in; lengths count the ids of the unpruned prompt.
    """

    repetition_penalty: AboveZero = 1.0
    encoder_repetition_penalty: AboveZero = 1.0
    no_repeat_ngram_size: Count = 0
    encoder_no_repeat_ngram_size: Count = 0
    bad_words_ids: list[list[Count]] = []
    sequence_bias: list[tuple[list[Count], float]] = []
    min_length: Count = 0
    min_new_tokens: Count = 0
    forced_bos_token_id: Count | None = None
    forced_eos_token_id: list[Count] = []
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: list[Count] = []
    begin_suppress_tokens: list[Count] = []
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    stop_strings: list[str] = []  # end an answer as the end tokens do

    do_sample: bool = False
    temperature: float = 1.0
    top_k: Count = 50
    top_p: float = 1.0
    top_h: float | None = None
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    max_new_tokens: Positive | None = None
    max_length: Positive | None = None


class SelfCheck(msgspec.Struct, kw_only=True):
    """Comparison of the bundle's own runtime with transformers, made by the build before it wrote anything else.

    Token ids were equal, and pixels equal to the processor's Pillow form; otherwise there would be no bundle.
    """

    images: list[str]  # kinds of images compared, such as "opaque", "transparent", "grey"
    conversations: list[str]  # such as "one turn", "two turns"
    # Largest difference to the processor's torchvision form in 8-bit levels; None where torchvision is not installed
    torchvision_levels: float | None = None
    # Error of the vision graph's features against PyTorch's, relative by norm; None where they were not compared
    features_error: float | None = None


class Decoder(msgspec.Struct, kw_only=True):
    """Sizes of the language model, for the KV cache and the limits of a prompt; the names are transformers'."""

    num_hidden_layers: Positive
    hidden_size: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    vocab_size: Positive
    max_position_embeddings: Positive


class Source(msgspec.Struct, kw_only=True):
    """The checkpoint the bundle was made from."""

    requested: str
    kind: Literal["alias", "hub", "folder"]
    id: str
    revision: str | None
    weights: Literal["stored", "random"]
    seed: int | None
    files: dict[str, Sha256]


class File(msgspec.Struct, kw_only=True):
    """Size and hash of one file of the bundle."""

    bytes: Count
    sha256: Sha256


class Manifest(msgspec.Struct, kw_only=True):
    """Everything a runtime or a person needs to know about a bundle. It is never changed in place.

    `command`, `created_at` and `versions` are those of the last build; each plan has its own command and time.
    """

    schema_version: int
    name: str
    created_at: str  # UTC, ISO 8601
    command: str
    versions: dict[str, str]
    family: str
    precision: WeightType  # of what goes from graph to graph: visual tokens, hidden states, keys and values
    weights: dict[Part, list[StoredWeights]]
    source: Source
    vision: Vision
    image: Image
    text: Text
    generation: Generation = msgspec.field(default_factory=Generation)
    self_check: SelfCheck | None = None
    notes: list[str] = []  # what the last build had to say about the checkpoint's files
    decoder: Decoder
    position_ids: PositionIds
    images_per_prompt: ImagesPerPrompt = msgspec.field(default_factory=ImagesPerPrompt)
    graphs: dict[str, Graph]
    plans: Annotated[list[Plan], msgspec.Meta(min_length=1)]
    files: dict[str, File]
    adaptive_plans: list[AdaptivePlan] = []
