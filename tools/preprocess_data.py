"""Tokenise a data set into a MindRecord file for SFT or GRPO.

Also takes MindSpeed-RL's data set YAMLs (--config FILE, or the name alone) and the flags of mindrlhf's rlhf_data.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1parallel.data.flags import MAX_PROMPT_LENGTH, SEQ_LENGTH, add_preprocess_flags
from r1parallel.data.mindrlhf_flags import translate_flags
from r1parallel.data.preprocess import preprocess, preprocess_yaml
from r1parallel.errors import UserError, run_command

_NAMED_BY_CONFIG = (
    *("dataset_type", "file_path", "tokenizer_dir", "output_path", "prompt_type"),
    *("vocab_path", "merges_file_path", "pad_token_id"),
)


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    args = vars(_parser().parse_args(argv))
    if args["num_rows"] is not None and args["num_rows"] < 1:
        raise UserError(f"--num_rows is {args['num_rows']}; it must be at least 1")
    name, config = args.pop("name"), args.pop("config")
    if name is not None or config is not None:
        output_path, counts = _from_yaml(name, config, args)
    else:
        output_path, counts = _from_flags(args)
    print(f"{output_path}: {counts.written} rows written, {counts.dropped_long} dropped as too long, {counts.bad} bad")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="preprocess_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="MindSpeed-RL: configs/datasets/NAME.yaml of the working directory")
    parser.add_argument("--config", help="MindSpeed-RL: data set YAML; it names data, tokenizer and output")
    add_preprocess_flags(parser)
    parser.add_argument("--vocab_path", help="mindrlhf: vocab.json")
    parser.add_argument("--merges_file_path", help="mindrlhf: merges.txt")
    parser.add_argument("--pad_token_id", help="mindrlhf: has no meaning here")
    return parser


def _from_yaml(name: str | None, config: str | None, args: dict[str, Any]) -> Any:
    if name is not None and config is not None:
        raise UserError(f"{name!r} and --config both name a data set YAML; give one")
    for flag in _NAMED_BY_CONFIG:
        if args.pop(flag) is not None:
            raise UserError(f"--{flag}: the YAML names it; leave the flag out or change the YAML")
    path = (
        Path(config) if config is not None else Path("configs", "datasets", f"{str(name).removesuffix('.yaml')}.yaml")
    )
    return preprocess_yaml(path, print, **args)


def _from_flags(args: dict[str, Any]) -> Any:
    vocab, merges, pad = args.pop("vocab_path"), args.pop("merges_file_path"), args.pop("pad_token_id")
    if vocab is not None or merges is not None:
        if args["tokenizer_dir"] is not None:
            raise UserError("--vocab_path and --tokenizer_dir both name a tokenizer; give one")
        theirs = {"vocab_path": vocab, "merges_file_path": merges, "pad_token_id": pad}
        theirs |= {flag: args[flag] for flag in ("dataset_type", "prompt_type")}
        args |= translate_flags(theirs, print)
    elif pad is not None:
        raise UserError("--pad_token_id goes with mindrlhf's --vocab_path; the tokenizer folder names the pad token")
    missing = [flag for flag in ("dataset_type", "file_path", "tokenizer_dir", "output_path") if args[flag] is None]
    if missing:
        raise UserError(f"missing: --{', --'.join(missing)}; or give --config with a MindSpeed-RL data set YAML")
    defaults = {"prompt_type": "plain", "max_prompt_length": MAX_PROMPT_LENGTH, "seq_length": SEQ_LENGTH}
    args |= {flag: value for flag, value in defaults.items() if args[flag] is None}
    return args["output_path"], preprocess(**args)


if __name__ == "__main__":
    run_command(main)
