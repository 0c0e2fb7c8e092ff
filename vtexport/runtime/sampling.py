"""Choosing an answer's tokens from logits: greedy, sampled from the nucleus, or as the checkpoint says; and its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from tokenizers import Tokenizer

from vtexport.bundle.manifest import Generation
from vtexport.errors import UsageError
from vtexport.runtime.logits_processors import Processor, Warper, make_processors, make_warpers
from vtexport.runtime.stop_strings import StopStrings

Sampling = Literal["greedy", "checkpoint"]
FinishReason = Literal["eos", "stop_string", "length"]
SAMPLING = get_args(Sampling)
MAX_NEW_TOKENS = 128  # where nothing else is said


class Sampler:
    """`temperature` 0 takes the largest logit (the lower id on ties); above, it samples from the smallest set of tokens
    whose probability reaches `top_p` (Holtzman et al., arXiv 1904.09751). The same seed gives the same tokens.

    Raises:
        UsageError: temperature negative or not finite, top_p outside (0, 1], seed negative.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None):
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{name} is {value!r}; give a number")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise UsageError(f"seed is {seed!r}; give a whole number")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature is {temperature}; give 0 for greedy or a positive number")
        if not 0 < top_p <= 1:
            raise UsageError(f"top_p is {top_p}; give a number above 0 and at most 1")
        if seed is not None and seed < 0:
            raise UsageError(f"seed is {seed}; give a whole number from 0")
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token's id from logits [V]; -inf is never drawn.

        Raises:
            UsageError: sampling, where no logit is left or one is infinite.
        """
        if self._temperature == 0:
            return int(np.argmax(logits))
        if not math.isfinite(most := float(logits.max())):
            raise UsageError(
                "the checkpoint's logits processors leave no token to sample; answer greedily, or turn them off with "
                "logits_processors=False (--no-logits-processors)"
            )
        # The largest first: a tiny temperature would make two infinities of which the difference is not a number.
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - most) / self._temperature)
        order = np.argsort(-weights, kind="stable")
        cumulative = np.cumsum(weights[order])
        cumulative /= cumulative[-1]
        nucleus = int(np.searchsorted(cumulative, self._top_p)) + 1
        draw = self._random.random() * cumulative[min(nucleus, len(order)) - 1]
        return int(order[min(int(np.searchsorted(cumulative, draw, side="right")), nucleus - 1, len(order) - 1)])


class WarpedSampler:
    """Draws from what the checkpoint's warpers leave of the distribution, as transformers' `generate()` does.

    The draws are the generator's own: the same seed gives the same tokens here, not those of PyTorch.
    """

    def __init__(self, warpers: Sequence[Warper], seed: int | None):
        self._warpers = warpers
        self._draw = Sampler(1.0, 1.0, seed)

    def warped(self, logits: np.ndarray) -> np.ndarray:
        """Scores [V] float32 after the warpers."""
        scores = logits.astype(np.float32, copy=False)
        for warp in self._warpers:
            scores = warp(scores)
        return scores

    def __call__(self, logits: np.ndarray) -> int:
        """The next token's id from logits [V] float32."""
        return self._draw(self.warped(logits))


class Decoding:
    """Rules of decoding: what the caller asks for, and the checkpoint's generation configuration where it counts.

    Args:
        settings: of the bundle's manifest.
        sampling: "greedy" leaves sampling and lengths to the arguments; "checkpoint" takes what they leave out
            (do_sample, temperature, top_p and the other warpers, max_new_tokens or max_length) from `settings`.
        temperature: 0 for the likeliest token; None for 0, or the checkpoint's.
        top_p: None for 1, or the checkpoint's.
        seed: makes sampling repeatable.
        logits_processors: whether the checkpoint's logits processors change the logits first.
        max_new_tokens: None for 128, or the checkpoint's.

    Raises:
        UsageError: a value is out of range.
    """

    def __init__(
        self,
        settings: Generation,
        *,
        sampling: Sampling = "greedy",
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        logits_processors: bool = True,
        max_new_tokens: int | None = None,
    ):
        if sampling not in SAMPLING:
            raise UsageError(f"sampling is {sampling!r}; give {' or '.join(SAMPLING)}")
        whole = isinstance(max_new_tokens, int) and not isinstance(max_new_tokens, bool) and max_new_tokens >= 1
        if max_new_tokens is not None and not whole:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; give a whole number from 1")
        self._settings = settings if logits_processors else Generation(stop_strings=settings.stop_strings)
        self._lengths = settings if sampling == "checkpoint" else Generation()
        self._max_new_tokens = max_new_tokens
        asked = Sampler(
            0.0 if temperature is None else temperature, 1.0 if top_p is None else top_p, seed
        )  # also where the checkpoint samples: wrong values are refused alike
        samples = settings.do_sample if temperature is None else temperature > 0
        self._sampler: Sampler | WarpedSampler = asked
        if sampling == "checkpoint" and samples:
            given = {"temperature": temperature, "top_p": top_p}
            over = {name: float(value) for name, value in given.items() if value is not None}
            self._sampler = WarpedSampler(make_warpers(msgspec.structs.replace(settings, **over)), seed)

    def new_tokens(self, prompt_tokens: int) -> int:
        """The limit on new tokens of an answer to an unpruned prompt of so many.

        transformers' own limit for checkpoints that state none, 20 new tokens, is not taken over.

        Raises:
            UsageError: the prompt is as long as the checkpoint's max_length.
        """
        if self._max_new_tokens is not None:
            return self._max_new_tokens
        if self._lengths.max_new_tokens is not None:
            return self._lengths.max_new_tokens
        if (most := self._lengths.max_length) is None:
            return MAX_NEW_TOKENS
        if most <= prompt_tokens:
            raise UsageError(
                f"the checkpoint's max_length is {most} and the unpruned prompt has {prompt_tokens} tokens; "
                "give max_new_tokens (--max-new-tokens)"
            )
        return most - prompt_tokens

    def start(
        self, prompt: np.ndarray, max_new_tokens: int, eos: Sequence[int], vocabulary: int, tokenizer: Tokenizer
    ) -> TokenChooser:
        """Chooses the tokens of one answer.

        Args:
            prompt: ids [L] int64 of the unpruned prompt, a placeholder for each visual token of the image.
            max_new_tokens: as `new_tokens` says.
            eos: the end tokens.
            vocabulary: V of the logits.
            tokenizer: for the checkpoint's stop strings.
        """
        processors = make_processors(self._settings, prompt, eos, max_new_tokens, vocabulary)
        stops = StopStrings(tokenizer, self._settings.stop_strings) if self._settings.stop_strings else None
        return TokenChooser(prompt, max_new_tokens, eos, processors, self._sampler, stops)


class TokenChooser:
    """The tokens of one answer, one after the other.

    Attributes:
        finish_reason: Why the token that was chosen last is the answer's last one; None while it is not.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        max_new_tokens: int,
        eos: Sequence[int],
        processors: Sequence[Processor],
        sampler: Sampler | WarpedSampler,
        stops: StopStrings | None,
    ):
        self.finish_reason: FinishReason | None = None
        self._ids = np.empty(len(prompt) + max_new_tokens, np.int64)
        self._ids[: len(prompt)] = prompt
        self._count = len(prompt)
        self._eos, self._processors, self._sampler, self._stops = set(eos), processors, sampler, stops

    def __call__(self, logits: np.ndarray) -> int:
        """The next token's id from logits [V] float32, which stay as they are."""
        if self._processors:
            logits = logits.astype(np.float32)
            for process in self._processors:
                logits = process(self._ids[: self._count], logits)
        token = self._sampler(logits)
        self._ids[self._count] = token
        self._count += 1
        if token in self._eos:
            self.finish_reason = "eos"
        elif self._stops is not None and self._stops(self._ids[: self._count]):
            self.finish_reason = "stop_string"
        elif self._count == len(self._ids):
            self.finish_reason = "length"
        return token
