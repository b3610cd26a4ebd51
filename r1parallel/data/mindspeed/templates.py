"""MindSpeed-RL's prompt templates: its templates.json format, and those of its templates that Qwen and R1 recipes name.

The wording and the markers below are data of configs/model/templates.json in github.com/Ascend/MindSpeed-RL (MIT
licence), kept to the letter: a prompt that differs in one character is another prompt. What a reasoning template
does with thoughts is that of MindSpeed-LLM's class of this name.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1parallel.data.text.tokenizer import Tokenizer
from r1parallel.errors import UserError

_R1_WORDING = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think><answer> answer here </answer>. "
    "Put your final answer within \\boxed{}."
)
_CHATML_SYSTEM = {"slots": ["<|im_start|>system\n{{content}}<|im_end|>\n"]}
_CHATML_USER = "<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"
_CHATML = {
    "format_user": {"slots": [_CHATML_USER]},
    "format_system": _CHATML_SYSTEM,
    "default_system": "You are a helpful assistant.",
}
_BOS = {"slots": [["bos_token"]]}
_BUILT_IN: dict[str, dict[str, Any]] = {
    "empty": {"format_user": {"slots": ["{{content}}"]}},
    "qwen": _CHATML,
    "qwen_r1": {
        **_CHATML,
        "format_user": {"slots": [_CHATML_USER.replace("{{content}}", _R1_WORDING + "\n{{content}}")]},
    },
    "qwen_math_r1": {
        **_CHATML,
        "default_system": "Please reason step by step, and put your final answer within \\boxed{}.",
    },
    "qwen3": {
        "format_user": {"slots": [_CHATML_USER]},
        "format_system": _CHATML_SYSTEM,
        "template_class": "ReasoningTemplate",
    },
    "deepseek3": {"format_user": {"slots": ["<｜User｜>{{content}}<｜Assistant｜>"]}, "format_prefix": _BOS},
    "deepseek3_r1": {
        "format_user": {"slots": [_R1_WORDING + " <｜User｜>{{content}}<｜Assistant｜>"]},
        "format_prefix": _BOS,
    },
}
BUILT_IN_TEMPLATES = tuple(_BUILT_IN)

_MARKER = re.compile("<[|｜][^<>|｜]+[|｜]>")
_THOUGHT_WORDS = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True)
class _Slot:
    """A piece of text, or the name of a special token."""

    text: str
    is_name: bool = False


@dataclass(frozen=True)
class MindSpeedTemplate:
    """One template. Thought words stand only in one of MindSpeed's class ReasoningTemplate."""

    prefix: tuple[_Slot, ...]
    system: tuple[_Slot, ...]
    user: tuple[_Slot, ...]
    default_system: str
    system_in_user: bool
    thought_words: tuple[str, str] | None

    def prompt(self, question: str, tokenizer: Tokenizer, system: str = "", enable_thinking: bool = False) -> str:
        """The prompt of one turn. A reasoning template without thinking ends it with an empty thought.

        Raises:
            UserError: the tokenizer lacks a marker of the template, which would be read as ordinary letters.
        """
        for marker in _MARKER.findall("".join(slot.text for slot in (*self.prefix, *self.system, *self.user))):
            tokenizer.id_of(marker)
        system = system or self.default_system
        front = _filled(self.system, system, tokenizer) if system else ""
        prefix = _filled(self.prefix, "", tokenizer)
        ending = "".join(self.thought_words) if self.thought_words and not enable_thinking else ""
        if self.system_in_user:
            return prefix + _filled(self.user, front + question, tokenizer) + ending
        return prefix + front + _filled(self.user, question, tokenizer) + ending

    def answer(self, text: str, enable_thinking: bool) -> str:
        """The answer to learn: with thinking an empty thought is put before one that has none, without all are cut."""
        if self.thought_words is None:
            return text
        opening, closing = self.thought_words
        if enable_thinking:
            return text if opening in text or closing in text else opening + closing + text
        return re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", "", text, flags=re.DOTALL).lstrip("\n")


def _filled(slots: tuple[_Slot, ...], content: str, tokenizer: Tokenizer) -> str:
    return "".join(
        tokenizer.special_tokens.get(slot.text, "")
        if slot.is_name
        else slot.text.replace("{{idx}}", "0").replace("{{content}}", content, 1)
        for slot in slots
    )


def load_mindspeed_template(name: str, path: Path | None = None) -> MindSpeedTemplate:
    """The template `name` of a templates.json, or of those kept here (no path).

    Raises:
        UserError: there is no such file or template, or it is malformed.
    """
    if path is None:
        if name not in _BUILT_IN:
            raise UserError(
                f"prompt_type {name!r} is not among the templates kept here ({', '.join(BUILT_IN_TEMPLATES)}); "
                "set prompt_type_path to a templates.json that has it"
            )
        return _Reader(f"template {name}", _BUILT_IN[name]).template(name)
    listed = _read_list(path)
    found = [entry for entry in listed if entry.get("name") == name]
    if not found:
        known = ", ".join(str(entry.get("name")) for entry in listed)
        raise UserError(f"{path}: has no template {name!r}, only {known}; mend prompt_type")
    return _Reader(f"{path}: template {name!r}", found[-1]).template(name)


def _read_list(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"prompt_type_path {path}: no such file; leave the key out to use the templates kept here")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise UserError(f"{path}: expected a list of templates, as MindSpeed-RL's templates.json")
    return listed


class _Reader:
    """One entry of a templates.json."""

    def __init__(self, where: str, entry: dict[str, Any]) -> None:
        self._where = where
        self._entry = entry

    def template(self, name: str) -> MindSpeedTemplate:
        user = self._slots("format_user", "{{content}}")
        if not any("{{content}}" in slot.text for slot in user):
            raise UserError(f"{self._where}: format_user has no {{{{content}}}} for the question; add it")
        return MindSpeedTemplate(
            prefix=self._slots("format_prefix", ""),
            system=self._slots("format_system", "{{content}}"),
            user=user,
            default_system=self._default_system(),
            system_in_user=name.startswith("llama2"),  # as theirs goes by the name
            thought_words=self._thought_words(),
        )

    def _slots(self, key: str, default: str) -> tuple[_Slot, ...]:
        listed = (self._entry.get(key) or {"slots": [default]}).get("slots")
        if not isinstance(listed, list):
            raise UserError(f"{self._where}: {key} has no list of slots")
        return tuple(self._slot(key, slot) for slot in listed)

    def _slot(self, key: str, slot: Any) -> _Slot:
        if isinstance(slot, str):
            return _Slot(slot)
        if isinstance(slot, list) and slot in (["bos_token"], ["eos_token"]):
            return _Slot(slot[0], is_name=True)
        if isinstance(slot, dict) and isinstance(slot.get("token"), str):
            return _Slot(slot["token"])
        raise UserError(f"{self._where}: a slot of {key} is {slot!r}; expected text, [bos_token] or [eos_token]")

    def _default_system(self) -> str:
        value = self._entry.get("default_system") or ""
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{self._where}: default_system is {value!r}; expected text")
        return "".join(parts)

    def _thought_words(self) -> tuple[str, str] | None:
        kind = self._entry.get("template_class") or "Template"
        if kind not in ("Template", "ReasoningTemplate"):
            raise UserError(f"{self._where}: template_class is {kind!r}; only Template and ReasoningTemplate are known")
        words = self._entry.get("thought_words") or _THOUGHT_WORDS
        if len(words) != 2 or not all(isinstance(word, str) for word in words):
            raise UserError(f"{self._where}: thought_words is {words!r}; expected two texts")
        return (words[0], words[1]) if kind == "ReasoningTemplate" else None
