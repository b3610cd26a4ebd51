"""The kinds of tokenizer files and how each turns text into ids."""

import re
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from r1parallel.errors import UserError

# How Qwen2 cuts text before byte-pair merging: digits one by one, a word with at most one leading mark.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
_QWEN2_5_FIRST_ADDED = 151643
_QWEN2_5_SPECIAL = (  # in the order of their ids
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_QWEN2_5_ORDINARY = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN2_5_NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


class Backend(Protocol):
    """What a `Tokenizer` needs of a library."""

    size: int  # largest id + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the text."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of the ids."""

    def token_to_id(self, token: str) -> int | None:
        """Id of one token, if there is one."""


class _LibraryBackend:
    """A tokenizer of the tokenizers library."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.size = max(inner.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._inner.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)


class _SentencePieceBackend:
    """A SentencePiece model. It never reads its control tokens from text, so text is cut at them first."""

    def __init__(self, inner: sentencepiece.SentencePieceProcessor, added: dict[int, str]) -> None:
        self._inner = inner
        pieces = inner.get_piece_size()
        control = {i: inner.id_to_piece(i) for i in range(pieces) if inner.is_control(i)}
        self._text_of = {**control, **added}
        self._id_of = {text: i for i, text in self._text_of.items()}
        longest_first = sorted(self._id_of, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self.size = max(pieces, *(i + 1 for i in self._text_of), 0)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._cut.split(text) if self._cut else [text]:
            ids.extend([self._id_of[part]] if part in self._id_of else self._inner.encode(part))
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        texts: list[str] = []
        run: list[int] = []
        for i in ids:
            if i in self._text_of:
                texts += [self._inner.decode(run), "" if skip_special_tokens else self._text_of[i]]
                run = []
            elif i < self._inner.get_piece_size():
                run.append(i)
        return "".join([*texts, self._inner.decode(run)])

    def token_to_id(self, token: str) -> int | None:
        if token in self._id_of:
            return self._id_of[token]
        found = self._inner.piece_to_id(token)  # the unknown id for what it lacks
        return found if self._inner.id_to_piece(found) == token else None


def load_backend(folder: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, str]]:
    """The backend of a folder with this tokenizer_config.json, and the token names that its files imply.

    Raises:
        UserError: the folder holds no tokenizer or a damaged one.
    """
    if (folder / "tokenizer.json").is_file():
        try:
            return _LibraryBackend(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))), {}
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from None
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _LibraryBackend(_qwen2_bpe(folder, config)), dict(_QWEN2_5_NAMED)
    if (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(folder, config)
    raise UserError(
        f"{folder}: holds no tokenizer; expected tokenizer.json, vocab.json + merges.txt, or tokenizer.model"
    )


def _qwen2_bpe(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    if config.get("tokenizer_class") not in _QWEN2_CLASSES:
        raise UserError(
            f"{folder}: vocab.json + merges.txt of {config['tokenizer_class']!r}; only Qwen2's are read, "
            "put a tokenizer.json beside them"
        )
    try:
        bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{folder}: vocab.json + merges.txt do not make a tokenizer: {error}") from None
    built = tokenizers.Tokenizer(bpe)
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    _add_tokens(built, _added_tokens(folder, config) or _qwen2_5_added(), folder)
    return built


def _add_tokens(built: tokenizers.Tokenizer, added: dict[int, AddedToken], folder: Path) -> None:
    for wanted, token in sorted(added.items()):
        built.add_tokens([token])
        found = built.token_to_id(token.content)
        if found != wanted:
            raise UserError(
                f"{folder}: {token.content!r} must have id {wanted} but comes out as {found}; vocab.json has "
                f"{built.get_vocab_size(with_added_tokens=False)} entries, is it the right one?"
            )


def _qwen2_5_added() -> dict[int, AddedToken]:
    special = [AddedToken(text, normalized=False, special=True) for text in _QWEN2_5_SPECIAL]
    ordinary = [AddedToken(text, normalized=False, special=False) for text in _QWEN2_5_ORDINARY]
    return dict(enumerate([*special, *ordinary], _QWEN2_5_FIRST_ADDED))


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    listed = config.get("added_tokens_decoder", {})
    try:
        return {
            int(i): AddedToken(
                entry["content"],
                single_word=entry.get("single_word", False),
                lstrip=entry.get("lstrip", False),
                rstrip=entry.get("rstrip", False),
                normalized=entry.get("normalized", False),
                special=entry.get("special", False),
            )
            for i, entry in listed.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is malformed") from None


def _load_sentencepiece(folder: Path, config: dict[str, Any]) -> tuple[Backend, dict[str, str]]:
    path = folder / "tokenizer.model"
    try:
        inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a SentencePiece model: {error}") from None
    ids = {"bos_token": inner.bos_id(), "eos_token": inner.eos_id(), "pad_token": inner.pad_id()}
    named = {name: inner.id_to_piece(i) for name, i in ids.items() if i >= 0}
    added = {i: token.content for i, token in _added_tokens(folder, config).items()}
    return _SentencePieceBackend(inner, added), named
