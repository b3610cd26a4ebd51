"""MindSpeed-RL's data set YAMLs: what each key asks for, and one line for each key that is not kept as it stands."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from r1parallel.config.keys import nearest
from r1parallel.data.mindspeed.templates import MindSpeedTemplate, load_mindspeed_template
from r1parallel.errors import UserError

LEARN_ANSWERS = "AlpacaStyleInstructionHandler"
PROMPTS = "R1AlpacaStyleInstructionHandler"
PROMPTS_IN_MESSAGES = "Math17kAlpacaStyleInstructionHandler"
_HANDLERS = {
    LEARN_ANSWERS: "prompts and answers to learn, for SFT",
    PROMPTS: "prompts and gold solutions, for GRPO; no answer to learn is kept",
    PROMPTS_IN_MESSAGES: "prompts from chat messages and gold solutions, for GRPO; no answer to learn is kept",
}
_OTHER_HANDLERS = {
    "AlpacaStylePairwiseHandler": "pairs of a better and a worse answer",
    "AlpacaStyleProcessRewardHandler": "a label for each step of an answer",
}
_MEANINGLESS = {
    "workers": "rows are tokenised in one process",
    "log_interval": "a progress bar is shown instead",
    "streaming": "one pass over the rows makes the file",
    "n_subs": "one file is written",
    "pack": "the file holds one row an example; a run packs rows while it trains",
    "neat_pack": "the file holds one row an example; a run packs rows while it trains",
    "append_eod": "an answer to learn always ends with the tokenizer's eos token",
    "tokenizer_not_use_fast": "there is one kind of tokenizer",
    "vocab_file": "the tokenizer is that of tokenizer_name_or_path",
    "merge_file": "the tokenizer is that of tokenizer_name_or_path",
    "make_vocab_size_divisible_by": "the model's own config says how many rows its embedding has",
    "pad_vocab_size_to": "the model's own config says how many rows its embedding has",
    "cache_dir": "nothing is cached",
    "overwrite_cache": "nothing is cached",
    "script_data_dir": "no data set scripts are run",
    "seed": "rows keep their order; a run shuffles them with its own seed",
    "dataset_impl": "the output is MindRecord",
    "interleave_probs": "one data set is read",
    "json_keys": "the handler decides which columns are written",
    "split_sentences": "it is for pretraining text",
    "keep_newlines": "it is for pretraining text",
    "placeholder_token": "it is for process rewards",
    "reward_tokens": "it is for process rewards",
}
_HONOURED = (
    *("input", "tokenizer_name_or_path", "output_prefix", "handler_name", "tokenizer_type", "prompt_type"),
    *("prompt_type_path", "enable_thinking", "map_keys", "dataset_additional_keys", "seq_length", "merge_group_keys"),
)
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": ""}
_UNREAD_COLUMNS = ("history", "chosen", "rejected")


@dataclass(frozen=True)
class DatasetYaml:
    """What one YAML asks for; relative paths start at the working directory."""

    path: Path
    input: Path
    tokenizer_dir: Path
    output_path: Path
    handler: str
    columns: dict[str, str]  # prompt, query, response, system → name of a column, empty for none
    mapped: tuple[str, ...]  # those that the YAML itself names: their columns must be there
    template: MindSpeedTemplate
    enable_thinking: bool
    seq_length: int | None


def read_dataset_yaml(path: str | Path, report: Callable[[str], None]) -> DatasetYaml:
    """Read a data set YAML; `report` gets one line for each key that became something else or has no meaning.

    Raises:
        UserError: unreadable file, unknown key (with the nearest known), wrong value, a handler of no use here.
    """
    keys = _Keys(Path(path))
    handler = _handler(keys)
    keys.refuse_unless("tokenizer_type", "HuggingFaceTokenizer")
    if keys.values.get("merge_group_keys") is not None:
        raise keys.error("merge_group_keys", "there is nothing to merge; name the folder of all data files in input")
    report(f"handler_name: {handler} gives {_HANDLERS[handler]}")
    output_path = Path(keys.text("output_prefix") + ".mindrecord")
    report(f"output_prefix: the file is {output_path}, with its .db")
    columns, mapped = _columns(keys)
    _report_additional(keys, report)
    template, enable_thinking = _template(keys, report)
    for key in keys.values:
        if key in _MEANINGLESS:
            report(f"{key}: no meaning here, {_MEANINGLESS[key]}")
    return DatasetYaml(
        path=keys.path,
        input=Path(keys.text("input")),
        tokenizer_dir=Path(keys.text("tokenizer_name_or_path")),
        output_path=output_path,
        handler=handler,
        columns=columns,
        mapped=mapped,
        template=template,
        enable_thinking=enable_thinking,
        seq_length=_seq_length(keys),
    )


class _Keys:
    """The keys of one YAML; those without a value count as left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: no such data set YAML; go to the folder it starts at or name it with --config")
        try:
            text = path.read_text(encoding="utf-8")
            node = yaml.compose(text, yaml.SafeLoader)
            values = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: not readable as YAML: {error}") from None
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected keys and values, as in MindSpeed-RL's configs/datasets")
        self._lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in self._lines:
                raise UserError(f"{path}:{line}: {key.value} was given in line {self._lines[key.value]} already")
            self._lines[key.value] = line
            self._check_known(key.value)
        self.values = {key: value for key, value in values.items() if value is not None}

    def _check_known(self, key: str) -> None:
        known = (*_HONOURED, *_MEANINGLESS)
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
            raise self.error(key, f"unknown key of a data set YAML; {hint}")

    def error(self, key: str, message: str) -> UserError:
        return UserError(f"{self.path}:{self._lines[key]}: {key}: {message}")

    def text(self, key: str) -> str:
        if key not in self.values:
            raise UserError(f"{self.path}: {key} is missing; add it")
        value = self.values[key]
        if not isinstance(value, str) or not value.strip():
            raise self.error(key, f"is {value!r}; expected text")
        return value.strip()

    def refuse_unless(self, key: str, only: str) -> None:
        if self.values.get(key, only) != only:
            raise self.error(key, f"is {self.values[key]!r}; only {only} is known")

    def parsed(self, key: str) -> Any:
        """The value; text that is JSON, as some of their YAMLs have it, is read."""
        value = self.values[key]
        if isinstance(value, str) and value.strip()[:1] in ("{", "["):
            try:
                return json.loads(value)
            except ValueError:
                raise self.error(key, f"is {value!r}; expected keys and values") from None
        return value


def _handler(keys: _Keys) -> str:
    name = keys.text("handler_name")
    if name in _OTHER_HANDLERS:
        raise keys.error(
            "handler_name",
            f"{name} prepares {_OTHER_HANDLERS[name]}, which SFT and GRPO do not use; "
            f"use {PROMPTS} (GRPO) or {LEARN_ANSWERS} (SFT)",
        )
    if name not in _HANDLERS:
        raise keys.error("handler_name", f"is {name!r}; known: {', '.join(_HANDLERS)}")
    return name


def _columns(keys: _Keys) -> tuple[dict[str, str], tuple[str, ...]]:
    given = keys.parsed("map_keys") if "map_keys" in keys.values else {}
    if not isinstance(given, dict) or not all(isinstance(name, str | None) for name in given.values()):
        raise keys.error("map_keys", f"is {given!r}; expected names of columns, as {{prompt: problem}}")
    for key, name in given.items():
        if key in _UNREAD_COLUMNS and name:
            raise keys.error("map_keys", f"{key}: several turns and pairs are not read; leave it empty")
        if key not in _COLUMNS and key not in _UNREAD_COLUMNS:
            raise keys.error("map_keys", f"{key!r} is unknown; known: {', '.join(_COLUMNS)}")
    columns = {key: given.get(key, default) or "" for key, default in _COLUMNS.items()}
    if not columns["response"]:
        raise keys.error("map_keys", "response names no column; name the one that holds the gold answer")
    if not columns["prompt"] and not columns["query"]:
        raise keys.error("map_keys", "prompt names no column; name the one that holds the question")
    return columns, tuple(key for key in _COLUMNS if given.get(key))


def _report_additional(keys: _Keys, report: Callable[[str], None]) -> None:
    if "dataset_additional_keys" not in keys.values:
        return
    given = keys.parsed("dataset_additional_keys")
    for name in given if isinstance(given, list) else [given]:
        became = "the column solution, as text" if name == "labels" else "not kept, rewards get the solution only"
        report(f"dataset_additional_keys: {name} is {became}")


def _template(keys: _Keys, report: Callable[[str], None]) -> tuple[MindSpeedTemplate, bool]:
    name = keys.text("prompt_type") if "prompt_type" in keys.values else "empty"
    path = Path(keys.text("prompt_type_path")) if "prompt_type_path" in keys.values else None
    template = load_mindspeed_template(name, path)
    enable_thinking = keys.values.get("enable_thinking", False)
    if not isinstance(enable_thinking, bool):
        raise keys.error("enable_thinking", f"is {enable_thinking!r}; expected true or false")
    report(f"prompt_type: MindSpeed-RL's template {name}" + (f" of {path}" if path else f", here mindspeed_{name}"))
    if template.thought_words is None:
        if enable_thinking:
            report(f"enable_thinking: no meaning for the template {name}, which knows no thoughts")
    elif not enable_thinking:
        report("enable_thinking: off, so each prompt ends with an empty thought")
    return template, enable_thinking


def _seq_length(keys: _Keys) -> int | None:
    value = keys.values.get("seq_length")
    if value is not None and (type(value) is not int or value < 2):
        raise keys.error("seq_length", f"is {value!r}; expected a whole number of at least 2")
    return value
