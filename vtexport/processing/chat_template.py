"""The chat template of a checkpoint: the one that transformers' processor takes, where it can carry an image.

Checkpoints come with templates in up to five places, and many fine-tunes with the language model's own, which knows
contents that are strings alone. So the template is asked from the library and then tried, through the library's own
rendering, with conversations about an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtexport.bundle.manifest import ROLES
from vtexport.errors import InputError, cut, printable, quoted

FAMILYS_OWN = "vtexport"  # as the source of a template that is not the checkpoint's

_JINJA = "chat_template.jinja"
# Where a default template may stand; a folder of further ones may have it, too
_FILES = (
    "processor_config.json", "chat_template.json", _JINJA, "additional_chat_templates/default.jinja",
    "tokenizer_config.json",
)  # fmt: skip
# Words that no template writes by itself, and that survive a change of case, trimming and the removal of spaces
_ASKED, _ANSWERED, _ASKED_AGAIN = "vtxquestion17", "vtxanswer29", "vtxfurther31"


@dataclass(frozen=True)
class ChatTemplate:
    """A template for a bundle, with what is known of it."""

    text: str
    source: str  # the checkpoint's file, or `FAMILYS_OWN`
    part_roles: list[str] = field(default_factory=list)  # as `manifest.Text.part_roles`
    several_turns: bool = True  # whether it takes a second question after an answer
    image_counts: tuple[int, ...] = (0, 2)  # of these, with how many images it takes a question, too
    notes: list[str] = field(default_factory=list)


def choose_chat_template(folder: Path, tokenizer: Any, image_token: str, familys_own: str | None) -> ChatTemplate:
    """The template that a bundle of the checkpoint in `folder` gets.

    It is the one of transformers' processor, else the tokenizer's; where there is none, or it cannot carry an image,
    the family's own with a note that says why.

    Args:
        folder: the checkpoint.
        tokenizer: what AutoTokenizer makes of it.
        image_token: the image's placeholder.
        familys_own: the family's template, None where it has none.

    Raises:
        InputError: a file with a template cannot be read, or no template carries an image.
    """
    stored = stored_templates(folder)
    templates, by = processors_templates(folder), "transformers' processor"
    if templates is None:
        templates, by = getattr(tokenizer, "chat_template", None), "transformers' tokenizer"
    notes: list[str] = []

    def instead(why: str) -> ChatTemplate:
        return _familys(familys_own, tokenizer, image_token, notes, why, folder)

    if templates is None:
        return instead(f"{folder} has no chat template")
    text = templates.get("default") if isinstance(templates, dict) else templates
    if not isinstance(text, str):
        names = ", ".join(sorted(map(str, templates))) if isinstance(templates, dict) else type(templates).__name__
        return instead(f"{folder} has no default chat template ({cut(printable(names), 60)})")
    source = next((name for name, one in stored.items() if _same(one, text)), by)
    if others := [name for name, one in stored.items() if not _same(one, text)]:
        both = f"{', '.join(others)} and {source} hold different chat templates"
        notes.append(f"{both}; {source} is taken, as {by} does")

    def rendered(conversation: list[dict[str, Any]]) -> str:
        return render(tokenizer, text, conversation)

    problem = "is not valid UTF-8" if not _is_utf8(text) else trouble(rendered, image_token)
    if problem is not None:
        return instead(f"the chat template of {source} {problem}")
    several = trouble_with_turns(rendered, image_token)
    if several is not None:
        notes.append(f"the chat template of {source} {several}; ask one question at a time")
    counts = image_counts(rendered, image_token)
    return ChatTemplate(text, source, part_roles(rendered), several is None, counts, notes)


def _familys(
    text: str | None, tokenizer: Any, image_token: str, notes: list[str], why: str, folder: Path
) -> ChatTemplate:
    """The family's own template, after a look that the tokenizer's tokens go with it."""
    step = f"give {folder / _JINJA} one that writes {image_token} for an image"
    if text is None:
        raise InputError(f"{why}, and its family has none of its own; {step}")
    text = text.replace("<image>", image_token)  # families write LLaVA's placeholder

    def rendered(conversation: list[dict[str, Any]]) -> str:
        return render(tokenizer, text, conversation)

    problem = trouble(rendered, image_token)
    if problem is not None:
        raise InputError(f"{cut(why, 130)}, and its family's own {cut(problem, 60)}; {step}")
    several = trouble_with_turns(rendered, image_token)
    notes = [*notes, f"{why}; the bundle gets the family's own"]
    counts = image_counts(rendered, image_token)
    return ChatTemplate(text, FAMILYS_OWN, part_roles(rendered), several is None, counts, notes)


def processors_templates(folder: Path) -> Any:
    """The template of transformers' processor for the checkpoint, or several by name; None where there is none.

    Raises:
        InputError: the library cannot read the processor's files.
    """
    from transformers import ProcessorMixin

    try:
        settings, _ = ProcessorMixin.get_processor_dict(folder, local_files_only=True)
        return settings.get("chat_template")
    except Exception as error:  # it raises whatever its readers of JSON and text do
        raise InputError(
            f"the chat template's files in {folder} cannot be read ({quoted(error, limit=120)}); correct them or fetch "
            "them again"
        ) from error


def stored_templates(folder: Path) -> dict[str, str]:
    """The default template of every file of the checkpoint that has one, for naming them; the library reads them."""
    found: dict[str, Any] = {}
    for name in _FILES:
        path = folder / name
        try:
            text = path.read_text(encoding="utf-8")
            found[name] = text if name.endswith(".jinja") else json.loads(text).get("chat_template")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue  # where it matters, the library says so
    templates = {name: _default(value) for name, value in found.items()}
    return {name: text for name, text in templates.items() if isinstance(text, str)}


def render(tokenizer: Any, template: str, conversation: list[dict[str, Any]]) -> str:
    """The conversation through transformers' own rendering."""
    return tokenizer.apply_chat_template(
        conversation, chat_template=template, add_generation_prompt=True, tokenize=False
    )


def trouble(rendered: Callable[[list[dict[str, Any]]], str], image_token: str) -> str | None:
    """The fault of a template for one question about an image, None where nothing is."""
    try:
        text = rendered([_question(_ASKED)])
    except Exception as error:  # a template computes: it raises anything
        return f"does not take a question about an image ({quoted(error, limit=120)})"
    if _is_dump(text):
        return "wants contents that are strings and prints an image's part as Python writes it"
    if (images := text.count(image_token)) != 1:
        return f"writes {images} placeholders ({image_token}) for one image"
    return None if _holds(text, _ASKED) else "loses the question's text"


def trouble_with_turns(rendered: Callable[[list[dict[str, Any]]], str], image_token: str) -> str | None:
    """The fault of a template for a further question, None where nothing is.

    The answer in between may be a string or parts, whichever the template knows.
    """
    problem = None
    for answer in ([{"type": "text", "text": _ANSWERED}], _ANSWERED):
        conversation = [_question(_ASKED), {"role": "assistant", "content": answer}, _text("user", _ASKED_AGAIN)]
        try:
            text = rendered(conversation)
        except Exception as error:
            problem = problem or f"does not take a second question ({quoted(error, limit=120)})"
            continue
        if _is_dump(text) or not all(_holds(text, word) for word in (_ASKED, _ANSWERED, _ASKED_AGAIN)):
            problem = problem or "loses text of a conversation with two questions"
        elif text.count(image_token) != 1:
            problem = problem or "loses or repeats the image in a conversation with two questions"
        else:
            return None
    return problem


def image_counts(rendered: Callable[[list[dict[str, Any]]], str], image_token: str) -> tuple[int, ...]:
    """Those of 0 and 2 with which a template takes a question: as many placeholders, and the text."""

    def takes(count: int) -> bool:
        try:
            text = rendered([_question(_ASKED, count)])
        except Exception:
            return False
        return text.count(image_token) == count and _holds(text, _ASKED) and not _is_dump(text)

    return tuple(count for count in (0, 2) if takes(count))


def part_roles(rendered: Callable[[list[dict[str, Any]]], str]) -> list[str]:
    """The roles whose text the template loses when it is a string, and renders when it is a part."""

    def takes(role: str, content: Any) -> bool:
        message = {"role": role, "content": content}
        before: list[dict[str, Any]] = [] if role in {"system", "developer", "user"} else [_question(_ASKED)]
        if role == "tool":
            before.append(_text("assistant", _ANSWERED))
        behind = [_question(_ASKED)] if role in {"system", "developer"} else []
        try:
            text = rendered([*before, message, *behind])
        except Exception:
            return False
        return _holds(text, _ASKED_AGAIN) and not _is_dump(text)

    part = [{"type": "text", "text": _ASKED_AGAIN}]
    return [role for role in ROLES if not takes(role, _ASKED_AGAIN) and takes(role, part)]


def _question(text: str, images: int = 1) -> dict[str, Any]:
    return {"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}]}


def _text(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _holds(text: str, word: str) -> bool:
    return word in text.lower()


def _is_dump(text: str) -> bool:
    """True where parts were printed as Python or JSON write them, in whatever case."""
    return "'type'" in text.lower() or '"type"' in text.lower()


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write halves of characters
        return False
    return True


def _same(one: str, other: str) -> bool:
    return one.removesuffix("\n") == other.removesuffix("\n")  # Jinja drops it


def _default(stored: Any) -> Any:
    """The template to use where none is named, of one or of several; tokenizer_config.json may have a list of them."""
    if isinstance(stored, list):
        stored = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
    return stored.get("default") if isinstance(stored, dict) else stored
