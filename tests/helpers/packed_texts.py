"""Random prompts and completions, and the rows of a graph that hold them: one in a padded row, or several in one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from r1parallel.models.fused.packing import SegmentMap


class Text(NamedTuple):
    """A prompt and the completion to score, at least one token each."""

    prompt: list[int]
    completion: list[int]


class Packed(NamedTuple):
    """Packed rows, and where each target of a row comes from: (text, token) or (-1, -1)."""

    tokens: np.ndarray
    segment_map: SegmentMap
    origin: np.ndarray

    def put(self, values_RK: np.ndarray, like_NC: np.ndarray) -> np.ndarray:
        """Values of the targets at their texts' positions, zero where a completion has ended."""
        out = np.zeros(like_NC.shape, values_RK.dtype)
        used = self.origin[..., 0] >= 0
        out[tuple(self.origin[used].T)] = values_RK[used]
        return out


def random_texts(rng: np.random.Generator, vocab: int, sizes: Sequence[tuple[int, int]]) -> list[Text]:
    """One text for each (prompt length, completion length)."""
    return [Text(*(rng.integers(0, vocab, size).tolist() for size in pair)) for pair in sizes]


def padded(texts: Sequence[Text], prompt: int, completion: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, prompt + completion] and starts [N]; padding is token 0."""
    tokens = np.zeros((len(texts), prompt + completion), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[prompt - len(text.prompt) : prompt] = text.prompt
        row[prompt : prompt + len(text.completion)] = text.completion
    return tokens, np.array([prompt - len(text.prompt) for text in texts], np.int32)


def inside(texts: Sequence[Text], completion: int) -> np.ndarray:
    """Whether a completion has this token, bool [N, completion]."""
    return np.arange(completion) < np.array([len(text.completion) for text in texts])[:, None]


def pack(
    texts: Sequence[Text], rows: Sequence[Sequence[Sequence[int]]], length: int, targets: int, filler: int = 0
) -> Packed:
    """Rows of groups of texts: the texts of a group have one prompt, which stands in the row once."""
    shape = len(rows), length
    tokens, positions = np.full(shape, filler, np.int32), np.zeros(shape, np.int32)
    segments, parents = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    sources, wanted = np.zeros((len(rows), targets), np.int32), np.zeros((len(rows), targets), np.int32)
    origin = np.full((len(rows), targets, 2), -1)
    for row, groups in enumerate(rows):
        slot = target = segment = 0
        for group in groups:
            own = segment
            prompt = texts[group[0]].prompt
            pieces = [(prompt, 0, own)]
            for text in group:
                assert texts[text].prompt == prompt
                segment += 1 if len(group) > 1 else 0
                pieces.append((texts[text].completion, len(prompt), segment))
            segment += 1
            end_of_prompt = slot + len(prompt) - 1
            for text, (ids, first, own_segment) in zip((None, *group), pieces, strict=True):
                place = row, slice(slot, slot + len(ids))
                tokens[place], positions[place] = ids, np.arange(first, first + len(ids))
                segments[place], parents[place] = own_segment, own
                for i, token in enumerate(ids if text is not None else []):
                    sources[row, target] = slot + i - 1 if i else end_of_prompt
                    wanted[row, target], origin[row, target] = token, (text, i)
                    target += 1
                slot += len(ids)
        assert slot <= length
    return Packed(tokens, SegmentMap(positions, segments, parents, sources, wanted), origin)
