"""transformers' logits processors and sampling warpers in NumPy.

They are those of `transformers.generation.logits_process` that a checkpoint can ask for (`manifest.Generation`), in the
order of `GenerationMixin._get_logits_processor` and in its arithmetic: float32, with cumulative sums in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vtexport.bundle.manifest import Generation

# (ids [L] int64, scores [V] float32) -> scores [V] float32. The ids are those that transformers would have: the
# unpruned prompt's, then the answer's so far. The scores may be overwritten.
Processor = Callable[[np.ndarray, np.ndarray], np.ndarray]
# scores [V] float32 -> scores [V] float32, -inf for tokens that cannot be drawn
Warper = Callable[[np.ndarray], np.ndarray]

_LOWEST, _HIGHEST = np.finfo(np.float32).min, np.finfo(np.float32).max


def make_processors(
    settings: Generation, prompt: np.ndarray, eos: Sequence[int], max_new_tokens: int, vocabulary: int
) -> list[Processor]:
    """Processors that change the scores before a token is chosen, in order; none for settings that change nothing.

    Args:
        settings: the checkpoint's.
        prompt: ids [L] int64 of the unpruned prompt.
        eos: the end tokens.
        max_new_tokens: where the answer ends at the latest.
        vocabulary: V.
    """
    end, length = _known(eos, vocabulary), len(prompt)
    found: list[Processor] = []
    if settings.sequence_bias:
        biases = {tuple(ids): bias for ids, bias in settings.sequence_bias}  # the last of equal sequences counts
        found.append(SequenceBias(biases, vocabulary))
    if settings.encoder_repetition_penalty != 1.0:
        found.append(RepetitionPenalty(1 / settings.encoder_repetition_penalty, prompt))
    if settings.repetition_penalty != 1.0:
        found.append(RepetitionPenalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size > 0:
        found.append(NoRepeatNGram(settings.no_repeat_ngram_size))
    if settings.encoder_no_repeat_ngram_size > 0:
        found.append(NoRepeatNGram(settings.encoder_no_repeat_ngram_size, prompt))
    if settings.bad_words_ids:
        words = [tuple(word) for word in settings.bad_words_ids if word not in [[token] for token in eos]]
        found.append(SequenceBias(dict.fromkeys(words, -np.inf), vocabulary))
    if settings.min_length > 0 and settings.min_new_tokens == 0:  # which overrides it
        found.append(Suppress(end, lambda count: count < settings.min_length))
    if settings.min_new_tokens > 0:
        found.append(Suppress(end, lambda count: count < length + settings.min_new_tokens))
    if settings.forced_bos_token_id is not None:
        found.append(Force(_known([settings.forced_bos_token_id], vocabulary), 1))
    if settings.forced_eos_token_id:
        found.append(Force(_known(settings.forced_eos_token_id, vocabulary), length + max_new_tokens - 1))
    if settings.remove_invalid_values:
        found.append(remove_invalid_values)
    if settings.exponential_decay_length_penalty is not None:
        start, factor = settings.exponential_decay_length_penalty
        found.append(ExponentialDecay(start + length, factor, end))
    if settings.suppress_tokens:
        found.append(Suppress(_known(settings.suppress_tokens, vocabulary)))
    if settings.begin_suppress_tokens:
        # A token that is forced after a start token alone comes before what counts as the beginning
        begin = length if length > 1 or settings.forced_bos_token_id is None else length + 1
        found.append(Suppress(_known(settings.begin_suppress_tokens, vocabulary), lambda count: count == begin))
    if settings.renormalize_logits:  # transformers does it after the warpers, which gives the same distribution
        found.append(lambda ids, scores: _log_softmax(scores))
    return found


def make_warpers(settings: Generation) -> list[Warper]:
    """Warpers of the distribution that tokens are drawn from, in order, after the processors."""
    found: list[Warper] = []
    if settings.temperature != 1.0:
        found.append(lambda scores: scores / np.float32(settings.temperature))
    if (top_h := settings.top_h) is not None:
        found.append(lambda scores: keep_top_h(scores, top_h))
    if settings.top_k > 0:
        found.append(lambda scores: keep_top_k(scores, settings.top_k))
    if settings.top_p < 1.0:
        found.append(lambda scores: keep_top_p(scores, settings.top_p))
    if (min_p := settings.min_p) is not None:
        found.append(lambda scores: keep_min_p(scores, min_p))
    if settings.typical_p < 1.0:
        found.append(lambda scores: keep_typical(scores, settings.typical_p))
    if 0.0 < settings.epsilon_cutoff < 1.0:
        found.append(lambda scores: keep_above(scores, np.float32(settings.epsilon_cutoff)))
    if 0.0 < settings.eta_cutoff < 1.0:
        found.append(lambda scores: keep_above(scores, _eta(scores, np.float32(settings.eta_cutoff))))
    return found


class RepetitionPenalty:
    """Scores of tokens that are in `tokens`, or in the ids where that is None, divided by the penalty once each.

    Negative ones are multiplied (Keskar et al., arXiv 1909.05858).
    """

    def __init__(self, penalty: float, tokens: np.ndarray | None = None):
        self._penalty, self._tokens = np.float32(penalty), tokens

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        tokens = ids if self._tokens is None else self._tokens
        tokens = tokens[tokens < len(scores)]
        found = scores[tokens]
        scores[tokens] = np.where(found < 0, found * self._penalty, found / self._penalty)
        return scores


class NoRepeatNGram:
    """Bans tokens that would repeat an n-gram of `tokens`, or of the ids where that is None."""

    def __init__(self, size: int, tokens: np.ndarray | None = None):
        self._size = size
        self._windows = None if tokens is None else self._cut(tokens)

    def _cut(self, ids: np.ndarray) -> np.ndarray:
        """[number of n-grams, n]"""
        return sliding_window_view(ids, self._size) if len(ids) >= self._size else np.empty((0, self._size), ids.dtype)

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        windows = self._cut(ids) if self._windows is None else self._windows
        if not len(windows):
            return scores
        begun = ids[len(ids) + 1 - self._size :]
        banned = windows[(windows[:, :-1] == begun).all(axis=1), -1]
        scores[banned[banned < len(scores)]] = -np.inf
        return scores


class SequenceBias:
    """Adds a bias to the last token of each sequence whose other tokens are the ids' last ones."""

    def __init__(self, biases: dict[tuple[int, ...], float], vocabulary: int):
        self._always = np.zeros(vocabulary, np.float32)
        longer: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for sequence, bias in biases.items():
            if any(token >= vocabulary for token in sequence):
                continue
            if len(sequence) == 1:
                self._always[sequence[0]] = bias
            elif sequence:
                longer.setdefault(len(sequence) - 1, []).append((sequence, bias))
        self._longer = [
            (
                np.array([sequence[:-1] for sequence, _ in group], np.int64),
                np.array([sequence[-1] for sequence, _ in group], np.int64),
                np.array([bias for _, bias in group], np.float32),
            )
            for group in longer.values()
        ]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        bias = self._always
        for prefixes, last, biases in self._longer:
            count = prefixes.shape[1]
            if count > len(ids):
                continue
            met = (prefixes == ids[-count:]).all(axis=1)
            if met.any():
                bias = bias.copy() if bias is self._always else bias
                np.add.at(bias, last[met], biases[met])
        return scores + bias


class Suppress:
    """Bans tokens, always or while the number of ids is as it says."""

    def __init__(self, tokens: np.ndarray, applies: Callable[[int], bool] = lambda count: True):
        self._tokens, self._applies = tokens, applies

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self._applies(len(ids)):
            scores[self._tokens] = -np.inf
        return scores


class Force:
    """Leaves these tokens alone, with a score of 0, after `count` ids."""

    def __init__(self, tokens: np.ndarray, count: int):
        self._tokens, self._count = tokens, count

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(ids) == self._count:
            scores[:] = -np.inf
            scores[self._tokens] = 0
        return scores


class ExponentialDecay:
    """Raises the end tokens' scores by a share of their size that grows with each id after `start`."""

    def __init__(self, start: int, factor: float, eos: np.ndarray):
        self._start, self._factor, self._eos = start, factor, eos

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(ids) > self._start:
            with np.errstate(over="ignore", invalid="ignore"):
                share = np.float32(np.float64(self._factor) ** (len(ids) - self._start) - 1)
                found = scores[self._eos]
                scores[self._eos] = found + np.where(np.isfinite(found), np.abs(found) * share, np.float32(0))
        return scores


def remove_invalid_values(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """No NaN and no infinity: 0, and the largest and lowest number that float32 has."""
    return np.nan_to_num(scores, nan=0.0, posinf=_HIGHEST, neginf=_LOWEST)


def keep_top_k(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` highest scores, and those that equal the last of them (Fan et al., arXiv 1805.04833)."""
    count = min(count, len(scores))
    return _without(scores, scores < np.partition(scores, -count)[-count])


def keep_top_p(scores: np.ndarray, mass: float) -> np.ndarray:
    """The most probable tokens whose probabilities reach `mass` together (Holtzman et al., arXiv 1904.09751)."""
    order = np.argsort(scores, kind="stable")
    gone = _cumulative(_softmax(scores[order])) <= np.float32(1 - mass)
    gone[-1] = False
    return _without(scores, _scattered(gone, order))


def keep_top_h(scores: np.ndarray, share: float) -> np.ndarray:
    """Of the 100 most probable tokens those whose entropy stays within a share of theirs (arXiv 2509.02510)."""
    order = np.argsort(-scores, kind="stable")[:100]
    logits = _log_softmax(scores[order])
    probabilities = _softmax(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = -probabilities * np.log(probabilities)  # NaN where a probability is 0, and nothing is kept from there
        kept = _cumulative(terms) <= _entropy(logits, probabilities) * np.float32(share)
    kept[0] = True
    gone = np.ones(len(scores), bool)
    gone[order[kept]] = False
    return _without(scores, gone)


def keep_min_p(scores: np.ndarray, share: float) -> np.ndarray:
    """Tokens at least a share as probable as the most probable one (Nguyen et al., arXiv 2407.01082)."""
    probabilities = _softmax(scores)
    gone = probabilities < np.float32(share) * probabilities.max()
    gone[np.argmax(probabilities)] = False
    return _without(scores, gone)


def keep_typical(scores: np.ndarray, mass: float) -> np.ndarray:
    """Tokens whose information is nearest to the entropy, to a probability of `mass` (arXiv 2202.00666)."""
    normalized = _log_softmax(scores)
    with np.errstate(invalid="ignore"):
        entropy = -np.nansum(normalized * np.exp(normalized), dtype=np.float32)
    distances = np.abs(-normalized - entropy)
    order = np.argsort(distances, kind="stable")
    nearest = distances[order]
    last = min(int((_cumulative(_softmax(scores[order])) < np.float32(mass)).sum()), len(scores) - 1)
    gone = nearest > nearest[last]
    gone[0] = False
    return _without(scores, _scattered(gone, order))


def keep_above(scores: np.ndarray, cutoff: np.float32) -> np.ndarray:
    """Tokens at least as probable as `cutoff`, or else the most probable ones (Hewitt et al., arXiv 2210.15191)."""
    return _without(scores, (_softmax(scores) < cutoff) & (scores < scores.max()))


def _eta(scores: np.ndarray, epsilon: np.float32) -> np.float32:
    """Eta sampling's cutoff, which falls with the entropy (Hewitt et al., arXiv 2210.15191)."""
    entropy = _entropy(_log_softmax(scores), _softmax(scores))
    return np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropy))


def _entropy(log_probabilities: np.ndarray, probabilities: np.ndarray) -> np.float32:
    return -(np.maximum(log_probabilities, _LOWEST) * probabilities).sum(dtype=np.float32)


def _known(ids: Sequence[int], vocabulary: int) -> np.ndarray:
    """Those that the model has."""
    return np.array([token for token in ids if token < vocabulary], np.int64)


def _without(scores: np.ndarray, gone: np.ndarray) -> np.ndarray:
    return np.where(gone, np.float32(-np.inf), scores)


def _scattered(mask: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A mask over sorted tokens as one over the vocabulary."""
    found = np.empty_like(mask)
    found[order] = mask
    return found


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Cumulative sums, added in float64 as PyTorch does on the CPU."""
    return np.cumsum(values, dtype=np.float64).astype(np.float32)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum(dtype=np.float32)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN where every token is banned
        shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
