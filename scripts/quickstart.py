"""The whole road on a toy: data, SFT, strategy and slices, GRPO, export, evaluation, report.

A teacher who forgets most carries and borrows shows a small Qwen2.5 how to add and subtract; GRPO, which is only told
whether an answer is right, makes the model better than its teacher. Every stage is a command that users run themselves.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from r1parallel.atomic import replacing
from r1parallel.config.tiny import tiny_grpo_flags
from r1parallel.errors import UserError, run_command
from r1parallel.monitor.report.report import write_report
from r1parallel.recipe.commands import Stages

ROOT = Path(__file__).resolve().parent.parent
NUM_TRAIN, NUM_TEST, SLIP = 3000, 500, 0.65
NUM_RANKS = 4  # of GRPO: dp2 · tp2 for actor, generator and reference
STAGE_LIMIT = 900  # seconds; a stage that takes longer is stuck


def main(argv: Sequence[str]) -> None:
    """Run all stages and print where the results lie."""
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0, help="of problems, weights and sampling (default 0)")
    parser.add_argument("--output_dir", default="runs/quickstart", help="replaced if it is a quickstart's")
    args = parser.parse_args(argv)
    out = Path(args.output_dir)
    fresh_folder(out)
    stages = Stages(ROOT, out / "stages.log", STAGE_LIMIT)
    data, tokenizer = out / "data", out / "data" / "tokenizer"
    configs = Path(os.path.relpath(ROOT / "model_configs" / "tiny"))
    make_data(stages, data, tokenizer, args.seed)
    sft = out / "sft"
    rows = ("--dataset_file", data / "train.mindrecord", "--tokenizer_dir", tokenizer, "--seed", args.seed)
    held_out = ("--sft_config.eval_dataset_file", data / "test.mindrecord")
    folders = ("--output_dir", sft, "--sft_config.save_strategy_dir", sft / "strategy")
    stages.run("sft", "run_sft.py", "--config", configs / "sft.yaml", *rows, *held_out, *folders)
    strategy, slices = out / "strategy", out / "slices"
    layout = [word for key, value in tiny_grpo_flags(NUM_RANKS).items() for word in (f"--{key}", value)]
    stages.run("slice", "tools/make_strategy.py", "--config", configs / "grpo.yaml", *layout, "--output_dir", strategy)
    train_strategy = strategy / "train_policy_strategy"
    cut = ("--src_checkpoint", sft / "model", "--dst_checkpoint_dir", slices, "--dst_strategy", train_strategy)
    stages.run("slice", "tools/slice_ckpt.py", *cut)
    grpo = out / "grpo"
    start = ("--actor_checkpoint_path", slices, "--output_dir", grpo, "--rl_config.save_strategy_dir", strategy)
    ranks = ("--worker_num", NUM_RANKS, "--log_dir", out / "logs")
    stages.run("grpo", "scripts/run_grpo.py", *ranks, "--config", configs / "grpo.yaml", *layout, *rows, *start)
    merged, hf = out / "merged", out / "hf"
    merge = ("--src_checkpoint", grpo / "model", "--dst_checkpoint_dir", merged, "--src_strategy", train_strategy)
    stages.run("export", "tools/slice_ckpt.py", *merge)
    stages.run("export", "tools/convert_weight.py", "--reversed", "--input_path", merged, "--output_path", hf)
    before = evaluate(stages, sft / "model", data)
    after = evaluate(stages, hf, data)
    summary = {
        "sft_accuracy": before["accuracy"],
        "grpo_accuracy": after["accuracy"],
        "num_problems": after["num_problems"],
        "seed": args.seed,
        "seconds": stages.seconds | {"total": round(sum(stages.seconds.values()), 1)},
    }
    with replacing(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = write_report(out, "r1parallel quickstart")
    print(f"held-out accuracy: {before['accuracy']:.1%} after SFT, {after['accuracy']:.1%} after GRPO")
    print(f"summary: {out / 'summary.json'}\nreport:  {report}\nmodel:   {hf} (Hugging Face format)")


def fresh_folder(out: Path) -> None:
    """Make the folder; one that an earlier quickstart left is replaced, any other is refused."""
    if out.exists() and any(out.iterdir()):
        if not (out / "stages.log").is_file():
            raise UserError(f"{out}: holds files that are no quickstart's; give another --output_dir")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "stages.log").touch()


def make_data(stages: Stages, data: Path, tokenizer: Path, seed: int) -> None:
    """Problems with right solutions for the test, and with a careless teacher's working for training."""
    data.mkdir()
    kind = ("--kind", "arithmetic", "--digits", 2)
    test, train = data / "test.jsonl", data / "train.jsonl"
    stages.run("data", "tools/make_problems.py", *kind, "--num", NUM_TEST, "--seed", 1000 + seed, "--output_path", test)
    more = ("--exclude", test, "--slip", SLIP, "--tokenizer_dir", tokenizer)
    made = ("--num", NUM_TRAIN, "--seed", seed, "--output_path", train)
    stages.run("data", "tools/make_problems.py", *kind, *made, *more)
    for file in (train, test):
        shape = ("--max_prompt_length", 8, "--seq_length", 40, "--prompt_type", "raw", "--tokenizer_dir", tokenizer)
        paths = ("--file_path", file, "--output_path", file.with_suffix(".mindrecord"))
        stages.run("data", "tools/preprocess_data.py", "--dataset_type", "arithmetic", *paths, *shape)


def evaluate(stages: Stages, model: Path, data: Path) -> dict:
    """Greedy accuracy on the held-out problems."""
    flags = ("--prompt_type", "raw", "--max_new_tokens", 24, "--batch_size", 250)
    test = ("--dataset_type", "arithmetic", "--file_path", data / "test.jsonl")
    return json.loads(stages.run("evaluate", "tools/evaluate.py", "--model", model, *test, *flags))


if __name__ == "__main__":
    run_command(main)
