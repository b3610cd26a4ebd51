"""Text to token ids and back, from a Hugging Face tokenizer folder."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from r1parallel.config.model import ModelConfig
from r1parallel.data.text.tokenizer_backends import Backend, load_backend
from r1parallel.errors import UserError


class Tokenizer:
    """One folder's tokenizer; made by `load_tokenizer`.

    Attributes:
        vocab_size: largest id + 1 (the model's embedding may have more rows).
        eos_token_id: the token that ends a completion in training.
        pad_token_id: fills rows up; the eos id where the folder names no pad token. Masks come from lengths,
            so it may also be a stop id.
        stop_ids: ids that end generation, the eos id first.
        special_tokens: name → text, as {"eos_token": "<|im_end|>"}; chat templates use them.
        chat_template: the folder's Jinja template, if it has one.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        special_tokens: dict[str, str],
        extra_stop_ids: Iterable[int],
        chat_template: str | None,
    ) -> None:
        self._backend = backend
        self._folder = folder
        self.vocab_size = backend.size
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self.eos_token_id = self.id_of(special_tokens["eos_token"])
        self.pad_token_id = self.id_of(special_tokens.get("pad_token", special_tokens["eos_token"]))
        self.stop_ids = list(dict.fromkeys([self.eos_token_id, *extra_stop_ids]))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens written in it are recognised; nothing is added.

        Raises:
            UserError: the text has a character that the vocabulary cannot express.
        """
        try:
            return self._backend.encode(text)
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{self._folder}: cannot encode {text[:80]!r}: {error}") from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; an id beyond the vocabulary (a padded row of the embedding) gives no text."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens)

    def id_of(self, token: str) -> int:
        """Id of one token.

        Raises:
            UserError: the vocabulary has no such token.
        """
        found = self._backend.token_to_id(token)
        if found is None:
            raise UserError(f"{self._folder}: the tokenizer has no token {token!r}")
        return found


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder.

    The first of these that is there is used: `tokenizer.json`; `vocab.json` with `merges.txt` (Qwen2's
    byte-level BPE); a SentencePiece `tokenizer.model`. `tokenizer_config.json` names the eos and pad tokens;
    only the last two kinds can do without it (Qwen2.5's own names, or the model file's).

    Raises:
        UserError: the folder or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such tokenizer folder")
    config = _read_json(folder / "tokenizer_config.json")
    backend, named = load_backend(folder, config)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if config.get(name) is not None:
            named[name] = _token_text(config[name], name, folder)
    if "eos_token" not in named:
        raise UserError(f"{folder}: no eos_token is named; add it to tokenizer_config.json")
    return Tokenizer(backend, folder, named, _stop_ids(folder), _chat_template(folder, config))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values")
    return content


def _token_text(value: Any, name: str, folder: Path) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise UserError(f"{folder / 'tokenizer_config.json'}: {name} is {value!r}; expected the token's text")
    return text


def _stop_ids(folder: Path) -> list[int]:
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        listed: Sequence[Any] = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in listed):
            raise UserError(f"{folder / name}: eos_token_id is {value!r}; expected a number or a list of numbers")
        ids.extend(listed)
    return ids


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    try:
        if isinstance(template, list):  # older folders name several
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    except (KeyError, TypeError):
        template = False
    if template is not None and not isinstance(template, str):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is malformed; expected text")
    return template


def check_tokenizer(tokenizer: Tokenizer, model: ModelConfig, folder: str) -> None:
    """Refuse a tokenizer with ids that the model's embedding has no row for.

    Raises:
        UserError: the tokenizer is of another model.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model's embedding {model.vocab_size} rows; "
            "is it the tokenizer of this model?"
        )
