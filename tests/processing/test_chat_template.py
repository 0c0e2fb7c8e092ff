"""The chat template of a checkpoint: the library's choice among its files, tried before it is taken."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import WHOLE
from hub_llava import IMAGE_TOKEN_ID, TEMPLATE, image_files, text_files
from text_checkpoint import processor_of, read_files, reader_of, write_text_checkpoint

from vtexport.bundle.manifest import ROLES
from vtexport.errors import InputError, UsageError
from vtexport.models.llava import Llava
from vtexport.processing.chat_template import ChatTemplate

QUESTION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
IMAGE_AND_TEXT = (
    "{{% for m in messages %}}{0}{{% for c in m.content %}}{{{{ '<image>' if c.type == 'image' else c.text }}}}"
    "{{% endfor %}}{{% endfor %}}"
)


def checkpoint(folder: Path, template: str | None = None, **changed: Any) -> Path:
    """Small files whose only template is `template`, as chat_template.jinja, and what `changed` adds."""
    none = {"chat_template__jinja": template, "chat_template__json": None}
    return write_text_checkpoint(folder, **{**none, **changed})


def chosen(folder: Path, familys_own: str | None = Llava.chat_template) -> ChatTemplate:
    return read_files(folder, familys_own).chat_template


PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")


def with_templates(folder: Path, places: tuple[str, ...]) -> Path:
    """A checkpoint with a template of its own in each of `places`."""
    changed: dict[str, Any] = {}
    for place in places:
        template = IMAGE_AND_TEXT.format(place)
        stored: Any = {"chat_template": template}
        if place == "processor_config.json":
            stored |= image_files()[place]
        if place == "tokenizer_config.json":
            stored |= text_files()[place]
        changed[place.replace(".", "__")] = template if place.endswith(".jinja") else stored
    return checkpoint(folder, **changed)


@pytest.mark.parametrize(
    "places", [each for count in range(1, 5) for each in itertools.combinations(PLACES, count)], ids="+".join
)
def test_the_librarys_choice_among_the_files(tmp_path: Path, places: tuple[str, ...]) -> None:
    folder = with_templates(tmp_path / "llava", places)
    template, processor = chosen(folder), processor_of(folder)
    try:
        text = processor.apply_chat_template(QUESTION, add_generation_prompt=True)
    except ValueError:  # a processor without a template; the tokenizer has one
        text = processor.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    reader = reader_of(read_files(folder), tmp_path / "written")
    assert reader.render(QUESTION) == text
    assert text.startswith(template.source)
    others = [place for place in places if place != template.source]
    assert len(template.notes) == bool(others)
    for other in others:
        assert other in template.notes[0]
    assert not others or f"hold different chat templates; {template.source} is taken" in template.notes[0]


def test_files_that_agree_are_not_mentioned(tmp_path: Path) -> None:
    folder = write_text_checkpoint(
        tmp_path / "llava",
        chat_template__jinja=f"{TEMPLATE}\n",  # Jinja drops a last newline
        tokenizer_config__json={**text_files()["tokenizer_config.json"], "chat_template": TEMPLATE},
    )
    template = chosen(folder)
    assert (template.text, template.source, template.notes) == (TEMPLATE, "chat_template.json", [])
    assert template.several_turns
    assert template.part_roles == list(ROLES)


def test_several_named_templates(tmp_path: Path) -> None:
    default, other = IMAGE_AND_TEXT.format("default"), IMAGE_AND_TEXT.format("other")
    folder = checkpoint(tmp_path / "a", default, **{"additional_chat_templates/tool_use.jinja": other})
    assert chosen(folder).text == default
    folder = checkpoint(tmp_path / "b", **{"additional_chat_templates/tool_use.jinja": other})
    template = chosen(folder)
    assert template.text == Llava.chat_template
    assert "has no default chat template (tool_use); the bundle gets the family's own" in template.notes[0]
    folder = checkpoint(tmp_path / "d", **{"additional_chat_templates/default.jinja": default})
    assert (chosen(folder).text, chosen(folder).source) == (default, "additional_chat_templates/default.jinja")
    named = [{"name": "tool_use", "template": other}, {"name": "default", "template": default}]
    folder = checkpoint(
        tmp_path / "c", tokenizer_config__json={**text_files()["tokenizer_config.json"], "chat_template": named}
    )
    assert (chosen(folder).text, chosen(folder).source) == (default, "tokenizer_config.json")


def test_no_template(tmp_path: Path) -> None:
    template = chosen(checkpoint(tmp_path / "llava"))
    assert (template.text, template.source) == (Llava.chat_template, "vtexport")
    assert "has no chat template; the bundle gets the family's own" in template.notes[0]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (WHOLE["strings alone"], "wants contents that are strings and prints an image's part as Python writes it"),
        (WHOLE["strips strings"], "does not take a question about an image ('list object' has no attribute 'strip')"),
        (WHOLE["adds strings"], "does not take a question about an image (can only concatenate"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "wants contents that are strings and prints"),
        ("<image>{% for m in messages %}{{ m.content }}{% endfor %}", "wants contents that are strings and prints"),
        ("<image>{{ messages | tojson }}", "wants contents that are strings and prints"),
        (IMAGE_AND_TEXT.replace("<image>", "<img>").format(""), "writes 0 placeholders (<image>) for one image"),
        (IMAGE_AND_TEXT.replace("<image>", "<image><image>").format(""), "writes 2 placeholders (<image>)"),
        (IMAGE_AND_TEXT.format("<image>"), "writes 2 placeholders (<image>) for one image"),
        ("<image>{{ messages | length }}", "loses the question's text"),
        ("<image>{% for m in messages %}{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}", "loses"),
        ("{{ raise_exception('no ' * 900) }}", "does not take a question about an image (no no"),
        ("{% if", "does not take a question about an image"),
        ("{{ messages.append(1) }}", "does not take a question about an image"),
    ],
)
def test_templates_that_carry_no_image(tmp_path: Path, template: str, why: str) -> None:
    folder = checkpoint(tmp_path / "llava", template)
    taken = chosen(folder)
    assert (taken.text, taken.source) == (Llava.chat_template, "vtexport")
    assert len(taken.notes) == 1
    assert taken.notes[0].startswith(f"the chat template of chat_template.jinja {why}")
    assert taken.notes[0].endswith("; the bundle gets the family's own")
    assert len(taken.notes[0]) < 300
    reader = reader_of(read_files(folder), tmp_path / "written")
    assert reader.render("What?") == "USER: <image>\nWhat? ASSISTANT:"
    for familys_own in (None, template):
        with pytest.raises(
            InputError, match=r"chat_template.jinja .*give .*chat_template.jinja one that writes <image>"
        ):
            chosen(folder, familys_own)


@pytest.mark.parametrize(
    "template",
    [
        *(WHOLE[name] for name in ("strings or parts", "system as a string alone", "llava, rendering images first")),
        IMAGE_AND_TEXT.format(""),
        IMAGE_AND_TEXT.format("{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"),
        IMAGE_AND_TEXT.format("{{ m.role | title }}").replace("c.text", "c.text | title"),
        "{% for m in messages %}{% for c in m.content | sort(attribute='type', reverse=true) %}"
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}",
    ],
)
def test_templates_that_are_the_checkpoints_own(tmp_path: Path, template: str) -> None:
    taken = chosen(checkpoint(tmp_path / "llava", template))
    assert (taken.text, taken.source, taken.notes, taken.several_turns) == (template, "chat_template.jinja", [], True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + IMAGE_AND_TEXT.format(""),
         "does not take a second question (one turn); ask one question at a time"),
        (IMAGE_AND_TEXT.format("").replace("in messages", "in messages[:1]"),
         "loses text of a conversation with two questions; ask one question at a time"),
        (IMAGE_AND_TEXT.format("").replace("in m.content", "in m.content if loop.index == 2 or messages | length == 1"),
         "in a conversation with two questions"),
    ],
)  # fmt: skip
def test_templates_of_one_turn_stay_with_a_note(tmp_path: Path, template: str, said: str) -> None:
    taken = chosen(checkpoint(tmp_path / "llava", template))
    assert (taken.text, taken.several_turns) == (template, False)
    assert len(taken.notes) == 1


def test_roles_whose_strings_become_parts(tmp_path: Path) -> None:
    """Those whose template loses or refuses a string and renders a part; elsewhere a string stays as it is."""
    both = chosen(checkpoint(tmp_path / "both", WHOLE["strings or parts"]))
    assert both.part_roles == []
    system = chosen(checkpoint(tmp_path / "system", WHOLE["system as a string alone"]))
    assert system.part_roles == []
    users = "{% for m in messages %}{% if m.role == 'user' %}{% for c in m.content %}" + (
        "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    folder = checkpoint(tmp_path / "users", users)
    assert chosen(folder).part_roles == ["user"]
    reader = reader_of(read_files(folder), tmp_path / "written")
    messages = [{"role": "system", "content": "Brief. "}, {"role": "user", "content": "<image>What?"}]
    assert reader.render(messages) == "Brief. <image>What?"


def test_a_placeholder_of_another_name(tmp_path: Path) -> None:
    """The family's template writes the tokenizer's placeholder, whatever it is."""
    names = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
    renamed = {name: json.dumps(text_files()[name]).replace("<image>", "<picture>") for name in names}
    folder = checkpoint(tmp_path / "llava", TEMPLATE, **renamed)
    files = read_files(folder)
    assert files.image_token == "<picture>"
    assert "writes 0 placeholders (<picture>)" in files.notes[0]
    assert reader_of(files, tmp_path / "written").render("What?") == "USER: <picture>\nWhat? ASSISTANT:"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chat_template__json": "{"}, "the chat template's files in"),
        ({"chat_template__json": {"template": "x"}}, "the chat template's files in"),
        ({"processor_config__json": "{"}, "the chat template's files in"),
        ({"processor_config__json": []}, "the chat template's files in"),
        (
            {"chat_template__json": {"chat_template": TEMPLATE}, "additional_chat_templates/x.jinja": "x"},
            "conflicting files",
        ),
    ],
)
def test_files_that_the_library_cannot_read(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    folder = checkpoint(tmp_path / "llava", **changed)
    with pytest.raises(InputError, match=said) as caught:
        chosen(folder)
    assert "correct them or fetch them again" in str(caught.value)
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_special_token_with_the_name_of_a_variable_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    """Neither the checkpoint's template nor the family's can be rendered by the library then."""
    settings = {**text_files()["tokenizer_config.json"], "extra_special_tokens": {name: "<pad>"}}
    folder = checkpoint(tmp_path / "llava", tokenizer_config__json=json.dumps(settings))
    with pytest.raises(InputError, match="and its family's own does not take a question") as caught:
        chosen(folder)
    assert len(str(caught.value).replace(str(folder), "")) < 300


@pytest.mark.parametrize("template", [5, ["x"], {"default": 7}, f"{TEMPLATE}\ud83d"])
def test_templates_that_are_no_text(tmp_path: Path, template: Any) -> None:
    settings = {**image_files()["processor_config.json"], "chat_template": template}
    taken = chosen(checkpoint(tmp_path / "llava", processor_config__json=json.dumps(settings)))
    assert taken.text == Llava.chat_template
    assert "the bundle gets the family's own" in taken.notes[0]


def test_a_message_the_template_refuses_is_refused_when_asked(tmp_path: Path) -> None:
    template = IMAGE_AND_TEXT.format("{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
    reader = reader_of(read_files(checkpoint(tmp_path / "llava", template)), tmp_path / "written")
    with pytest.raises(UsageError, match="the chat template does not take these messages: no system"):
        reader.render([{"role": "system", "content": "x"}, *QUESTION])
    assert reader.read(QUESTION).after.tolist()
    assert IMAGE_TOKEN_ID not in reader.read(QUESTION).after
