"""The flags of generate and evaluate, most of them short names for keys of the predict configuration."""

import argparse

from r1parallel.config.checks import check_compute_dtype
from r1parallel.config.limits import LARGEST_SEED, check_limits
from r1parallel.config.loading.load import PREDICT_SECTIONS, load_config
from r1parallel.config.schema import RunConfig
from r1parallel.data.templates import PROMPT_TYPES
from r1parallel.data.text.sources import DATASET_TYPES
from r1parallel.errors import UserError
from r1parallel.rewards import check_reward_names

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


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag of evaluate."""
    add_flags(parser)
    parser.add_argument("--dataset_type", required=True, choices=DATASET_TYPES)
    parser.add_argument("--file_path", required=True, help="data set, as for preprocess_data.py")
    parser.add_argument("--prompt_type", default="plain", choices=PROMPT_TYPES, help="template (default plain)")
    parser.add_argument("--num_samples", type=int, default=1, help="answers to each problem (default 1)")
    parser.add_argument("--num_rows", type=int, help="take only the first so many problems")
    parser.add_argument("--verifier_function", help="the reward that is 1 for a right answer (default: the data set's)")
    parser.add_argument("--output", help="also write one JSON line a problem, with its answers")


def read_evaluate_flags(args: argparse.Namespace) -> RunConfig:
    """The configuration of an evaluation.

    Raises:
        UserError: a number is out of its range, the verifier is unknown, several answers would all be equal, or
            whatever `read_flags` refuses.
    """
    for flag in ("num_samples", "num_rows"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} is {getattr(args, flag)}; it must be at least 1")
    if args.verifier_function:
        check_reward_names([args.verifier_function])
    # One answer is the most probable one; several must differ to say anything.
    greedy = args.num_samples == 1
    config = read_flags(args, max_new_tokens="256", batch_size="32", temperature="0" if greedy else "1")
    if not greedy and config.generate_config.sampling_config.temperature == 0:
        raise UserError("--temperature is 0 with several samples, which would all be equal; use --num_samples 1")
    return config
