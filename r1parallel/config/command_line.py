"""The command line of a training or generating command: --config FILE and one flag for every key."""

import inspect
from collections import deque
from collections.abc import Sequence

from r1parallel.config.keys import Key, help_texts, list_keys, nearest
from r1parallel.config.load import load_config
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
    """Read `argv`: `--config FILE`, `--section.key value` or `--section.key=value`, and the short flags.

    A flag of a true-or-false key means true when no value follows. Of a flag given twice, the last counts.
    `--help` prints every key and ends the process with status 0.

    Raises:
        UserError: unknown flag, missing or wrong value, or anything `load_config` refuses.

    """
    keys = list_keys(sections)
    if "--help" in argv or "-h" in argv:
        print(_help(keys, sections, prog, description))
        raise SystemExit(0)
    path: str | None = None
    overrides: dict[str, str] = {}
    for name, value in _read_flags(argv, keys):
        if name == "config":
            path = value
        else:
            overrides[name] = value
    return load_config(path, overrides, sections)


def short_flags(keys: dict[str, Key]) -> dict[str, str]:
    """Short flag → dotted key, for those short flags that mean one of `keys`."""
    meant = {}
    for flag, name in ALIASES.items():
        for candidate in (name, name.replace("rl_config.", "sft_config.")):
            if candidate in keys:
                meant[flag] = candidate
    return meant


def _read_flags(argv: Sequence[str], keys: dict[str, Key]) -> list[tuple[str, str]]:
    """(dotted key or "config", text) in the order given."""
    short = short_flags(keys)
    words = deque(argv)
    given = []
    while words:
        word = words.popleft()
        if not word.startswith("--"):
            raise UserError(f"unexpected argument {word!r}; flags look like --section.key value")
        flag, equals, value = word[2:].partition("=")
        name = short.get(flag, flag)
        if name not in keys and name != "config":
            raise UserError(_unknown_flag(flag, keys, short))
        if not equals:
            value = _next_value(words, f"--{flag}", name in keys and keys[name].kind is bool)
        given.append((name, value))
    return given


def _next_value(words: deque[str], flag: str, is_switch: bool) -> str:
    if is_switch and not (words and words[0].lower() in ("true", "false")):
        return "true"
    if not words or words[0].startswith("--"):
        raise UserError(f"{flag} needs a value")
    return words.popleft()


def _unknown_flag(flag: str, keys: dict[str, Key], short: dict[str, str]) -> str:
    inside = [name for name in keys if name.startswith(f"{flag}.")]
    if inside:
        return f"--{flag} is a section; name one of its keys, such as --{inside[0]}"
    near = nearest(flag, ["config", *short, *keys])
    return f"unknown flag --{flag}; " + (f"did you mean --{near}?" if near else "--help lists all flags")


def _help(keys: dict[str, Key], sections: Sequence[str], prog: str, description: str) -> str:
    texts = help_texts(keys.values())
    lines = [f"usage: {prog} [--config FILE] [--section.key value ...]", "", description, ""]
    lines += ["  --config FILE  YAML file; the flags below are stronger than it", "", "short flags:"]
    lines += [f"  --{flag:<22} is --{name}" for flag, name in short_flags(keys).items()]
    for section in sections:
        owner = type(vars(RunConfig())[section])
        lines += ["", f"{section}: {inspect.getdoc(owner)}"]
        for key in keys.values():
            if key.name.startswith(f"{section}."):
                default = value_text(key.default) or "empty"
                lines.append(f"  --{key.name}  {kind_name(key.kind)} (default: {default})")
                lines += [f"        {texts[key.name]}"] if texts[key.name] else []
    return "\n".join(lines)
