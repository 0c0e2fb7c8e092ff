"""A small LLaVA in the layout of the hub's `llava-hf/llava-1.5-7b-hf`, with seeded random weights.

Where the layout comes from: config.json was compared with copies of the repository's file that several public projects
quote (revisions of 2023 to 2024), and the chat template with copies of its chat_template.json. The rest (which files
there are, the fields of the tokenizer's files, shards and their index, `image_seq_length` in later revisions) is from
knowledge of the repository and has not been compared with the hub.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from tiny_llava import make_model

from vtexport.models.registry import family_of

LLAVA = family_of("llava", "")

HUB_ID = "llava-hf/llava-1.5-7b-hf"
REVISION = "b234b804b114d9e37bb655e11cbbb5f5e971b7a9"

# As it stands there: no hidden_size, no num_key_value_heads, no head_dim, no rope_theta, no end token.
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_seq_length": 576,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_SPECIAL = ("<unk>", "<s>", "</s>")
_CHARACTERS = "▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;?!'-\n"
_MERGES = (("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("i", "s"), ("▁", "is"), ("U", "S"), ("E", "R"),
           ("US", "ER"), ("▁", "USER"), ("W", "h"), ("a", "t"), ("Wh", "at"))  # fmt: skip


def _vocabulary() -> dict[str, int]:
    """As Llama's: special tokens, 256 bytes, pieces; about a hundredth of its size."""
    pieces = [
        *_SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("".join(pair) for pair in _MERGES),
        *_CHARACTERS,
    ]
    return {piece: number for number, piece in enumerate(pieces)}


IMAGE_TOKEN_ID = len(_vocabulary())  # behind the language model's own tokens, the padding token behind it


def small_config() -> dict[str, Any]:
    """The hub's configuration, small; the sizes that the hub's leaves out are 7B's by default and stand here."""
    text = {"hidden_size": 72, "intermediate_size": 112, "num_attention_heads": 6, "num_hidden_layers": 3,
            "max_position_embeddings": 512, "vocab_size": IMAGE_TOKEN_ID + 64}  # fmt: skip
    vision = {"hidden_size": 48, "image_size": 112, "intermediate_size": 80, "num_attention_heads": 4,
              "num_hidden_layers": 4, "projection_dim": 48}  # fmt: skip
    return {
        **CONFIG,
        "image_seq_length": 64,
        "image_token_index": IMAGE_TOKEN_ID,
        "pad_token_id": IMAGE_TOKEN_ID + 1,
        "text_config": {**CONFIG["text_config"], **text},
        "vision_config": {**CONFIG["vision_config"], **vision},
        "vocab_size": IMAGE_TOKEN_ID + 64,
    }


def write_repository(folder: Path) -> Path:
    """Every file of the repository, in three shards of float16."""
    folder.mkdir(parents=True)
    for name, content in {"config.json": small_config(), **text_files(), **image_files()}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    _write_weights(folder)
    return folder


def write_cache(repository: Path, cache: Path) -> Path:
    """The repository as huggingface_hub keeps it below `cache`: a snapshot of links to blobs; returns the snapshot."""
    root = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    for below in (root / "blobs", root / "refs", snapshot):
        below.mkdir(parents=True)
    (root / "refs" / "main").write_text(REVISION)
    for file in repository.iterdir():
        data = file.read_bytes()
        # large files by SHA-256, others by git's own hash
        git = hashlib.sha1(b"blob %d\0" % len(data) + data)
        blob = (hashlib.sha256(data) if file.suffix == ".safetensors" else git).hexdigest()
        (root / "blobs" / blob).write_bytes(data)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def _write_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlavaConfig

    model = make_model(LlavaConfig.from_pretrained(folder, local_files_only=True), seed=11).to(torch.float16)
    stored = {LLAVA.hub_name(LLAVA.canonical_name(name)): tensor for name, tensor in model.state_dict().items()}
    # in the order of the model, as save_pretrained splits it
    names = [name for name in stored if not name.endswith("position_ids")]
    third = -(-len(names) // 3)
    weight_map = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        held = {name: stored[name].contiguous() for name in names[number * third : (number + 1) * third]}
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(held, file)
    total = sum(stored[name].nbytes for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def text_files() -> dict[str, Any]:
    """Files about text by name: their text, or what they hold as JSON."""

    def token(content: str) -> dict[str, Any]:
        return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    vocabulary = _vocabulary()
    added = {**{name: vocabulary[name] for name in _SPECIAL}, "<image>": IMAGE_TOKEN_ID, "<pad>": IMAGE_TOKEN_ID + 1}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, **token(name), "special": True} for name, number in added.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary,
            "merges": [" ".join(pair) for pair in _MERGES],
        },
    }  # fmt: skip
    return {
        ".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.model filter=lfs -text\n",
        "README.md": "---\nlanguage:\n- en\npipeline_tag: image-text-to-text\n---\n# LLaVA Model Card\n",
        "added_tokens.json": {"<image>": IMAGE_TOKEN_ID, "<pad>": IMAGE_TOKEN_ID + 1},
        "chat_template.jinja": TEMPLATE,
        "chat_template.json": {"chat_template": TEMPLATE},
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": IMAGE_TOKEN_ID + 1,
            "transformers_version": "4.36.0.dev0",
        },
        "special_tokens_map.json": {
            "bos_token": token("<s>"), "eos_token": token("</s>"), "image_token": token("<image>"),
            "pad_token": token("<pad>"), "unk_token": token("<unk>"),
        },
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, "add_prefix_space": None,
            "added_tokens_decoder": {str(number): {**token(name), "special": True} for name, number in added.items()},
            "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>",
            "extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>", "legacy": False,
            "model_max_length": 1000000000000000019884624838656, "pad_token": "<pad>", "padding_side": "left",
            "processor_class": "LlavaProcessor", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
            "trust_remote_code": False, "unk_token": "<unk>", "use_default_system_prompt": False,
        },
    }  # fmt: skip


def image_files() -> dict[str, Any]:
    return {
        "preprocessor_config.json": {
            "crop_size": {"height": 112, "width": 112}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711], "processor_class": "LlavaProcessor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 112},
        },
        "processor_config.json": {
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
            "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
        },
    }  # fmt: skip


def sentencepiece_model() -> bytes:
    """The same tokens as a `tokenizer.model` has them: SentencePiece's ModelProto, written field by field."""

    def number(value: int) -> bytes:
        return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])

    def field(key: int, kind: int, value: Any) -> bytes:
        return number(key << 3 | kind) + (number(len(value)) + value if kind == 2 else value)

    def counted(key: int, value: int) -> bytes:
        return field(key, 0, number(value))

    merged = {"".join(pair): place for place, pair in enumerate(_MERGES)}
    pieces = b""
    for piece, place in _vocabulary().items():
        kind = 2 if piece == "<unk>" else 3 if piece in _SPECIAL else 6 if piece.startswith("<0x") else 1
        score = 0.0 if kind != 1 else -float(merged[piece]) if piece in merged else -1000.0 - place
        stored = field(1, 2, piece.encode()) + field(2, 5, struct.pack("<f", score)) + counted(3, kind)
        pieces += field(1, 2, stored)
    # BPE with bytes for what is unknown; the ids of <unk>, <s> and </s>, and no padding (-1)
    trainer = counted(3, 2) + counted(35, 1) + counted(4, len(_vocabulary())) + counted(40, 0) + counted(41, 1)
    trainer += counted(42, 2) + counted(43, 2**64 - 1)
    normaliser = field(1, 2, b"identity") + counted(3, 1) + counted(4, 0) + counted(5, 1)
    return pieces + field(2, 2, trainer) + field(3, 2, normaliser)
