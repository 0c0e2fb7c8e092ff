"""The VQA evaluations' text processing: fixed cases, and lmms-eval's copy of the original where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.eval.vqa_text import CONTRACTIONS, vqa_text

WORDS = ["a", "the", "two", "None", "cant", "couldnt've", "10,000", "1.5", "3.", "it's", "?", "-", "a-b", "y'alld've"]


@pytest.fixture(scope="module")
def original() -> Any:
    """The class `EvalAIAnswerProcessor`."""
    reason = "lmms-eval, which has a copy of the original, is not installed"
    return pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric", reason=reason).EvalAIAnswerProcessor


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Red Cup.", "red cup"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("10,000", "10000"),
        ("left-hand side", "left hand side"),
        ("yes!", "yes"),
        ("1.5", "1.5"),
        ("3. floor", "3 floor"),
        ("dog's", "dog 's"),
        ("an apple\nand a\tpear", "apple and pear"),
        ("", ""),
    ],
)
def test_what_it_does(text: str, wanted: str) -> None:
    assert vqa_text(text) == wanted


texts = st.one_of(
    st.text(alphabet="aA b.,?'’;-/1 2\n\t(x)"),
    st.lists(st.sampled_from([*WORDS, " ", "\n"])).map("".join),
    st.text(),
)


@given(text=texts)
def test_it_equals_the_original(original: Any, text: str) -> None:
    assert vqa_text(text) == original()(text)


def test_contractions_are_the_originals(original: Any) -> None:
    # Its three capitalised keys are never met, because the text is lower-cased before.
    table = original.CONTRACTIONS
    assert {key: word for key, word in table.items() if key != word and key.islower()} == CONTRACTIONS
