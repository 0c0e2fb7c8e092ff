from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtexport.serve.stop_text import StopText


@pytest.mark.parametrize(
    ("strings", "pieces", "shown"),
    [
        (["END"], ["one ", "E", "N", "D", " two"], ["one ", "", "", "", ""]),
        (["END"], ["one ", "EN", "T"], ["one ", "", "ENT"]),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (["b", "abc"], ["xabc"], ["x"]),
        ([], ["a", "b"], ["a", "b"]),
    ],
)
def test_pieces(strings: list[str], pieces: list[str], shown: list[str]) -> None:
    stop = StopText(strings)
    assert [stop.step(piece) for piece in pieces] == shown


def test_what_was_held_back_comes_at_the_end() -> None:
    stop = StopText(["END"])
    assert (stop.step("the EN"), stop.finish(), stop.stopped) == ("the ", "EN", False)


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=3), st.lists(st.text("abc", max_size=4), max_size=8))
def test_any_pieces_are_the_text_up_to_the_first_string(strings: list[str], pieces: list[str]) -> None:
    """Against the whole text, looked through after each piece: a later piece changes nothing that went out."""
    stop = StopText(strings)
    shown = "".join(stop.step(piece) for piece in pieces) + stop.finish()
    text, end = "", None
    for piece in pieces:
        text += piece
        found = [at for at in map(text.find, strings) if at >= 0]
        if found:
            end = min(found)
            break
    assert shown == (text if end is None else text[:end])
    assert stop.stopped == (end is not None)
