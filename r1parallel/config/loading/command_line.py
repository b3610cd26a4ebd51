"""The command line of a training or generating command: --config FILE and one flag for every key."""

import inspect
from collections import deque
from collections.abc import Sequence

from r1parallel.config.foreign import mindformers as foreign_mindformers
from r1parallel.config.foreign import mindrlhf as foreign_mindrlhf
from r1parallel.config.foreign.key_translation import shown
from r1parallel.config.foreign.mindrlhf import Flag
from r1parallel.config.keys import Key, help_texts, list_keys, nearest
from r1parallel.config.loading.load import foreign_keys, load_config
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import kind_name, value_text
from r1parallel.errors import UserError

# Short flags, as users of mindrlhf know them. A command with sft_config reads rl_config.X as sft_config.X.
ALIASES = {
    "dataset_file": "rl_config.dataset_file",
    "tokenizer_dir": "rl_config.tokenizer_dir",
    "output_dir": "rl_config.output_dir",
    "max_steps": "rl_config.max_steps",
    "seed": "rl_config.seed",
    "resume_training": "rl_config.resume_training",
    "tensorboard": "rl_config.tensorboard",
    "actor_checkpoint_path": "actor_config.load",
    "ref_checkpoint_path": "ref_config.load",
    "save_checkpoint_dir": "actor_config.save",
    "verifier_function": "reward_config.verifier_function",
    "verifier_weight": "reward_config.verifier_weight",
}


def parse_command_line(argv: Sequence[str], sections: Sequence[str], prog: str, description: str) -> RunConfig:
    """Read `argv`: `--config FILE`, `--section.key value`, `--section.key=value` or `section.key=value`, short flags.

    A flag of a true-or-false key means true when no value follows. Of a flag given twice, the last counts.
    `--help` prints every key and ends the process with status 0. Flags of mindrlhf and mindformers are understood, and
    rank 0 prints a note for each.

    Raises:
        UserError: unknown flag, missing or wrong value, or anything `load_config` refuses.

    """
    keys = list_keys(sections)
    if "--help" in argv or "-h" in argv:
        print(_help(keys, sections, prog, description))
        raise SystemExit(0)
    path: str | None = None
    overrides: dict[str, str] = {}
    notes: list[str] = []
    translated: dict[str, str] = {}  # our key → the foreign flag that gave it
    for name, words in _read_flags(argv, keys, sections):
        flags = foreign_flags(sections)
        if name == "config":
            path = words[0]
        elif name in flags:
            for key, text in _translate(name, words, flags[name], notes).items():
                if key in translated and overrides[key] != text:
                    raise UserError(f"--{translated[key]} and --{name} give {key} two values; give one of them")
                overrides[key], translated[key] = text, name
        else:
            overrides[name] = words[0]
    return load_config(path, overrides, sections, notes)


def short_flags(keys: dict[str, Key]) -> dict[str, str]:
    """Short flag → dotted key, for those short flags that mean one of `keys`."""
    meant = {}
    for flag, name in ALIASES.items():
        for candidate in (name, name.replace("rl_config.", "sft_config.")):
            if candidate in keys:
                meant[flag] = candidate
    return meant


def foreign_flags(sections: Sequence[str]) -> dict[str, Flag]:
    """Flags of mindrlhf for GRPO, of mindformers for SFT."""
    if "rl_config" in sections:
        return foreign_mindrlhf.FLAGS
    return foreign_mindformers.FLAGS if "sft_config" in sections else {}


def _translate(name: str, words: list[str], flag: Flag, notes: list[str]) -> dict[str, str]:
    """Our key → text of one foreign flag, whose note is added to `notes`."""
    fate, text = flag.fate, ",".join(words)
    if fate.only and text not in fate.only:
        raise UserError(f"--{name} is {text!r}, which has no counterpart: {fate.text}; give {fate.only[0]}")
    value = fate.convert(text, lambda _, default: default) if fate.convert else text
    given = dict.fromkeys(fate.to, str(value))
    outcome = ", ".join(f"{key} {shown(value)}" for key, value in given.items()) or "no key here"
    notes.append(f"--{name} {shown(text)}: " + "; ".join(part for part in (outcome, fate.text) if part))
    return given


def _read_flags(argv: Sequence[str], keys: dict[str, Key], sections: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(dotted key, foreign flag or "config", its texts) in the order given."""
    short, foreign, flags = short_flags(keys), foreign_keys(sections), foreign_flags(sections)
    words = deque(argv)
    given = []
    while words:
        word = words.popleft()
        if not word.startswith("--") and _is_assignment(word, sections):
            word = f"--{word}"
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; flags look like --section.key value")
        flag, equals, value = word[2:].partition("=")
        name = short.get(flag, flag)
        if name not in keys and name not in foreign and name not in flags and name != "config":
            raise UserError(_unknown_flag(flag, keys, short, [*flags, *foreign]))
        values = [value]
        if not equals:
            values = [_next_value(words, f"--{flag}", name in keys and keys[name].kind is bool)]
            while name in flags and flags[name].many and words and not words[0].startswith("--"):
                values.append(words.popleft())
        given.append((name, values))
    return given


def _is_assignment(word: str, sections: Sequence[str]) -> bool:
    """Whether a word is `section.key=value`, as Hydra takes it."""
    name, equals, _ = word.partition("=")
    return bool(equals) and "." in name and name.split(".")[0] in sections


def _next_value(words: deque[str], flag: str, is_switch: bool) -> str:
    if is_switch and not (words and words[0].lower() in ("true", "false")):
        return "true"
    if not words or words[0].startswith("--"):
        raise UserError(f"{flag} needs a value")
    return words.popleft()


def _unknown_flag(flag: str, keys: dict[str, Key], short: dict[str, str], foreign: Sequence[str]) -> str:
    inside = [name for name in keys if name.startswith(f"{flag}.")]
    if inside:
        return f"--{flag} is a section; name one of its keys, such as --{inside[0]}"
    near = nearest(flag, ["config", *short, *keys]) or nearest(flag, foreign)
    return f"unknown flag --{flag}; " + (f"did you mean --{near}?" if near else "--help lists all flags")


def _help(keys: dict[str, Key], sections: Sequence[str], prog: str, description: str) -> str:
    texts = help_texts(keys.values())
    lines = [f"usage: {prog} [--config FILE] [--section.key value ...]", "", description, ""]
    lines += ["  --config FILE  YAML file; the flags below are stronger than it", "", "short flags:"]
    lines += [f"  --{flag:<22} is --{name}" for flag, name in short_flags(keys).items()]
    if foreign_flags(sections):
        lines += ["", "flags and files of mindrlhf, mindformers and MindSpeed-RL are understood too: docs/migration.md"]
    for section in sections:
        owner = type(vars(RunConfig())[section])
        lines += ["", f"{section}: {inspect.getdoc(owner)}"]
        for key in keys.values():
            if key.name.startswith(f"{section}."):
                default = value_text(key.default) or "empty"
                lines.append(f"  --{key.name}  {kind_name(key.kind)} (default: {default})")
                lines += [f"        {texts[key.name]}"] if texts[key.name] else []
    return "\n".join(lines)
