"""The text processing of the VQA and TextVQA evaluations, so that scores compare with published ones.

Equal to `EvalAIAnswerProcessor` of the TextVQA evaluation (as in facebookresearch/mmf and lmms-eval), its oddities
included: it is case-insensitive, takes out articles, most punctuation and `none`, and writes number words as digits.
"""

from __future__ import annotations

import re

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# In the original, too, `(?!<=` is no look-behind: the full stop behind a digit goes as well, unless a digit follows.
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_FULL_STOPS = 32  # the original passes re.UNICODE, which is 32, as the number of substitutions
_COMMA = re.compile(r"(?<=\d)(\,)+(?=\d)")

# Words that are known with one of their apostrophes left out.
_SHORT_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _SHORT_FORMS.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the original


def vqa_text(text: str) -> str:
    """The text as those evaluations compare it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    has_comma = _COMMA.search(text) is not None
    shown = text
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        shown = shown.replace(sign, "" if beside_space or has_comma else " ")
    return _FULL_STOP.sub("", shown, count=_MOST_FULL_STOPS)
