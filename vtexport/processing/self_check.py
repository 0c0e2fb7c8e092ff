"""The check in every build that the bundle's own runtime prepares pixels and token ids as transformers does.

It runs before weights are fetched or copied, on the files that the bundle will have, through the code that the device
runs (`vtexport.runtime`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vtexport.bundle import manifest as schema
from vtexport.errors import InputError, VtexportError, cut, quoted
from vtexport.processing.chat_template import ChatTemplate
from vtexport.runtime.images import load_image, pixel_level_difference, pixel_values
from vtexport.runtime.prompt import PromptReader

_SEED = 20260310
_ANSWER = "A cup , is n't it ? It 's hot ! We 've two ."  # with all that transformers' cleaning of spaces looks for
_REPORT = "report this with the checkpoint's processor and tokenizer files"

Messages = list[dict[str, Any]]


def sample_images() -> dict[str, Image.Image]:
    """Images of each kind whose pixels are compared: seeded noise, wide and upright, with and without transparency."""
    random = np.random.default_rng(_SEED)

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        return random.integers(0, 256, (height, width, channels), dtype=np.uint8)

    return {
        "opaque": Image.fromarray(noise(211, 307, 3)),
        "transparent": Image.fromarray(noise(307, 211, 4)),
        "grey": Image.fromarray(noise(97, 61, 1)[:, :, 0]),
    }


def sample_conversations() -> dict[str, Messages]:
    """Conversations of each kind whose token ids are compared."""
    image, question = {"type": "image"}, "What is on the table? Café, naïve, 数字 42 — “yes”."
    one = [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cup of coffee."}]}
    again = {"role": "user", "content": [{"type": "text", "text": "  Is it hot?\nWhy"}]}
    return {"one turn": one, "two turns": [*one, answer, again]}


def compare_pixels(processor: Any, settings: schema.Image) -> list[str]:
    """Compares pixels of every sample image with those of the image processor's Pillow form, which must be equal.

    Transparency is composited on white before, whatever the installed transformers does with it.

    Returns:
        The kinds of images that were compared.

    Raises:
        InputError: pixels differ, or the processor cannot prepare an image.
    """
    images = sample_images()
    for kind, image in images.items():
        expected = library_pixels(processor, on_white(image), f"the {kind} sample image")
        found, _ = pixel_values(load_image(image), settings)
        if found.shape != expected.shape:
            what = (
                f"have shape {list(found.shape)}, and transformers' {settings.processor} gives {list(expected.shape)}"
            )
        elif not np.array_equal(found, expected):
            largest = float(np.abs(found - expected).max())
            what = f"differ from those of transformers' {settings.processor}, by up to {largest:.3g}"
        else:
            continue
        raise InputError(
            f"the bundle's pixels of the {kind} sample image ({image.width} x {image.height}) {what}; "
            f"nothing is built, {_REPORT}"
        )
    return list(images)


def torchvision_levels(processor: Any, settings: schema.Image) -> float:
    """Largest difference between the pixels of a processor in its torchvision form and the bundle's, in 8-bit levels.

    A processor in that form resizes with another library, which rounds differently; no build fails by it.
    """
    largest = 0.0
    for kind, image in sample_images().items():
        expected = library_pixels(processor, on_white(image), f"the {kind} sample image")
        found, _ = pixel_values(load_image(image), settings)
        largest = max(largest, pixel_level_difference(found, expected, settings))
    return round(largest, 3)


def on_white(image: Image.Image) -> Image.Image:
    """An RGB image with transparency composited on white, by Pillow alone."""
    ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def library_pixels(processor: Any, image: Image.Image, what: str) -> np.ndarray:
    """`pixel_values` [1, 3, H, W] float32 that transformers' image processor makes of an image.

    Raises:
        InputError: it cannot prepare `what`.
    """
    try:
        return np.asarray(processor(image, return_tensors="np")["pixel_values"], np.float32)
    except Exception as error:  # whatever a processor's code meets with the checkpoint's settings
        raise InputError(
            f"transformers' {type(processor).__name__} cannot prepare {what} ({quoted(error)}); "
            "fetch the checkpoint's processor files again"
        ) from error


def check_whole_processor(processor: Any, image_token: str) -> None:
    """Refuses a processor that prepares an image otherwise than its image processor alone does.

    It hands settings of the tokenizer on to it, such as a size or a resample in tokenizer_config.json.

    Raises:
        InputError: pixels differ.
    """
    image = sample_images()["opaque"]
    try:
        whole = np.asarray(processor(images=image, text=image_token)["pixel_values"], np.float32)
    except Exception:  # one that cannot make an image's tokens, of which `compare_ids` tells
        return
    alone = library_pixels(processor.image_processor, image, "the opaque sample image")
    if not np.array_equal(whole, alone):
        settings = ", ".join(sorted(set(processor.tokenizer.init_kwargs) & set(vars(processor.image_processor))))
        raise InputError(
            f"transformers' {type(processor).__name__} prepares images by settings of the tokenizer as well "
            f"({cut(settings, 80) or 'unknown ones'}), which the bundle's would lack; take them out of "
            "tokenizer_config.json"
        )


def compare_text(reader: PromptReader, tokenizer: Any, note: Callable[[str], None]) -> None:
    """A note where an answer's text is not what transformers makes of the same tokens, as where it cleans up spaces."""
    try:
        ids = tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
    except Exception:  # ids are compared, and there it is an error
        return
    stream = reader.stream()
    found = "".join([*map(stream.step, ids), stream.finish()])
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        at = next((number for number, pair in pairs if pair[0] != pair[1]), min(len(found), len(expected)))
        why = ", as clean_up_tokenization_spaces asks" if tokenizer.clean_up_tokenization_spaces else ""
        note(
            f"transformers changes an answer's text behind its tokens{why}: {expected[at : at + 8]!r} where the "
            f"bundle's text has {found[at : at + 8]!r}; the tokens are the same"
        )


def compare_ids(
    reader: PromptReader,
    processor: Any,
    text: schema.Text,
    template: ChatTemplate,
    tokens: int,
    note: Callable[[str], None],
) -> list[str]:
    """Compares token ids of every sample conversation with the library's, which must be equal.

    Args:
        reader: the runtime's reader of the files that go into the bundle.
        processor: transformers' processor of the checkpoint.
        text: what the manifest will say of them.
        template: the bundle's chat template.
        tokens: patch tokens of one image before pruning, for which the library repeats the image token.
        note: gets a sentence where the library itself does not make as many placeholders as the tower has tokens.

    Returns:
        The kinds of conversations that were compared.

    Raises:
        InputError: ids differ, or one of both cannot make them.
    """
    conversations = sample_conversations()
    if not template.several_turns:  # the template's own limit, of which a note tells
        del conversations["two turns"]
    image, noted = sample_images()["opaque"], False
    for kind, messages in conversations.items():
        expected, counted = library_ids(processor, messages, image, text.image_token_id, template.text)
        if counted != tokens and not noted:
            noted = True
            shown = "cannot repeat the image token" if counted is None else f"makes {counted} image tokens of an image"
            note(
                f"transformers' processor of this checkpoint {shown}, and the vision tower gives {tokens}; the bundle "
                "takes what the tower gives"
            )
        try:
            prompt = reader.read(messages)
        except VtexportError as error:
            raise InputError(
                f"the bundle's runtime cannot read a conversation of {kind} ({quoted(error, limit=150)}); {_REPORT}"
            ) from error
        found = [*prompt.before.tolist(), text.image_token_id, *prompt.after.tolist()]
        if found != expected:
            at = next(
                (number for number, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
                min(len(found), len(expected)),
            )
            raise InputError(
                f"the bundle's token ids of a conversation of {kind} differ from transformers' at place {at} "
                f"({found[at : at + 3]}, not {expected[at : at + 3]}); nothing is built: {_REPORT}"
            )
    return list(conversations)


def library_ids(
    processor: Any, messages: Messages, image: Image.Image, image_token_id: int, template: str
) -> tuple[list[int], int | None]:
    """Ids of a conversation by transformers with one image token, and how many of them the processor itself made.

    Raises:
        InputError: it cannot make ids of it.
    """
    tokenizer = processor.tokenizer
    try:
        rendered = processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        special = tokenizer.bos_token is None or not rendered.startswith(tokenizer.bos_token)
        try:
            # Cut texts are told of where the tokenizer is read, and what fills them up is masked
            whole = {"padding": False, "truncation": False}
            made = processor(images=image, text=rendered, add_special_tokens=special, **whole)["input_ids"]
            ids = np.asarray(made).reshape(-1).tolist()
            counted: int | None = ids.count(image_token_id)
        except (TypeError, AttributeError, ValueError):  # checkpoints whose processor lacks patch_size
            ids, counted = tokenizer(rendered, add_special_tokens=special)["input_ids"], None
    except Exception as error:  # a template computes, and a tokenizer's code is the checkpoint's choice
        raise InputError(
            f"transformers cannot make token ids of a conversation with this checkpoint ({quoted(error, limit=150)}); "
            "fetch its tokenizer and template files again"
        ) from error
    collapsed = [
        each for before, each in zip([None, *ids], ids, strict=False) if each != image_token_id or before != each
    ]
    return collapsed, counted
