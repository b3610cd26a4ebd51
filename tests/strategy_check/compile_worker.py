"""Compile models for several ranks of several layouts, all in this process; a strategy file for each.

python compile_worker.py FOLDER CASE:tied|untied:MODEL:RANK:TYPE …
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from helpers.layout_cases import CASES, Case, model_config

from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import ActorConfig, ParallelConfig, RecomputeConfig, RunConfig
from r1parallel.rl.grpo import GRPO
from r1parallel.strategy_check.compile_rank import compile_rank


def sizes_of(case: Case, tied: bool, compute_dtype: str) -> ModelConfig:
    """The cases' model; the fused attention takes heads of 16."""
    sizes = model_config(tied, case.layers)
    return sizes if compute_dtype == "float32" else replace(sizes, hidden_size=16 * sizes.num_heads)


def run_config(case: Case, tied: bool, folder: Path, compute_dtype: str = "float32") -> RunConfig:
    """A GRPO run whose three models are spread as a case says; the last two over dp and tp alone."""
    sizes = folder / f"{case.layers}_{'tied' if tied else 'untied'}_{compute_dtype}.json"
    sizes.write_text(json.dumps(sizes_of(case, tied, compute_dtype).to_hf()))
    config = RunConfig()
    config.context.compute_dtype = compute_dtype
    config.actor_config = ActorConfig(
        model_config=str(sizes),
        parallel_config=ParallelConfig(case.dp, case.tp, case.pp, case.sp, case.pp, case.interleave),
        offset=[] if case.stages is None else [count - sum(case.stages) // case.pp for count in case.stages],
        recompute_config=case.recompute or RecomputeConfig(),
        enable_parallel_optimizer=case.opt,
    )
    config.rl_config.batch_size = 2
    # Neither packing nor entropies change where a parameter lies: half of the jobs have both.
    config.rl_config.packing, config.rl_config.entropy_coef = tied, 0.01 if tied else 0.0
    for model in (config.ref_config, config.generate_config):
        model.parallel_config = ParallelConfig(case.dp * case.pp, case.tp)
    return config


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for job in sys.argv[2:]:
        name, tying, model, rank, compute_dtype = job.split(":")
        config = run_config(CASES[name], tying == "tied", target, compute_dtype)
        turned = compile_rank(config, model, GRPO, int(rank), CASES[name].world_size, target / f"{job}.ckpt")
        (target / f"{job}.json").write_text(json.dumps(sorted(turned)))
        print(f"done {job}", flush=True)
