"""The flags that generate and evaluate share: short names for keys of the predict configuration."""

import argparse

from r1parallel.config.checks import check_compute_dtype
from r1parallel.config.limits import LARGEST_SEED, check_limits
from r1parallel.config.load import PREDICT_SECTIONS, load_config
from r1parallel.config.schema import RunConfig

# flag → (key, help)
_FLAGS = {
    "model": ("generate_config.load", "Hugging Face folder or checkpoint of ours"),
    "tokenizer_dir": ("generate_config.tokenizer_dir", "tokenizer folder (default: the model's)"),
    "max_new_tokens": ("generate_config.sampling_config.max_tokens", "longest completion"),
    "temperature": ("generate_config.sampling_config.temperature", "0 is greedy"),
    "top_p": ("generate_config.sampling_config.top_p", "1 keeps every token"),
    "top_k": ("generate_config.sampling_config.top_k", "0 keeps every token"),
    "repetition_penalty": ("generate_config.sampling_config.repetition_penalty", "1 is none"),
    "batch_size": ("generate_config.infer_model_batch_size", "prompts generated together"),
    "device_target": ("context.device_target", "CPU or Ascend"),
    "compute_dtype": ("context.compute_dtype", "float32 or, on Ascend, bfloat16"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --config and the flags above; none has a default of its own, the configuration has."""
    parser.add_argument("--config", help="YAML with generate_config and context, such as a predict.yaml")
    for flag, (key, text) in _FLAGS.items():
        parser.add_argument(f"--{flag}", required=flag == "model", help=f"{text} ({key})")
    parser.add_argument("--seed", type=_seed, default=0, help="of the sampling (default 0)")


def _seed(text: str) -> int:
    """As `limits.py` has it for the seeds of a run."""
    if not text.isdecimal() or int(text) > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {LARGEST_SEED}")
    return int(text)


def read_flags(args: argparse.Namespace, **defaults: str) -> RunConfig:
    """The configuration that the flags, then the YAML, then `defaults` (by flag) make.

    Raises:
        UserError: a value has the wrong type or is out of its range, or the device cannot compute in the type.
    """
    given = {key: getattr(args, flag) for flag, (key, _) in _FLAGS.items() if getattr(args, flag) is not None}
    fallback = {} if args.config else {_FLAGS[flag][0]: value for flag, value in defaults.items()}
    config = load_config(args.config, {**fallback, **given}, PREDICT_SECTIONS)
    check_limits(config, PREDICT_SECTIONS)
    check_compute_dtype(config)
    return config
