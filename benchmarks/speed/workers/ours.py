"""Our rollout and our optimizer step, timed: python -m benchmarks.speed.workers.ours JOB.json

The job holds kind (rollout or training), model (Hugging Face folder), warm_up, iterations, output (JSON to write), and
what `speed/cases.py` gives; of a training step also config (YAML) and flags (its keys that are set otherwise).
"""

import sys
from typing import Any

import numpy as np

from benchmarks.speed.workers.timing import Work, counted, read_job, timed
from r1parallel.checkpoint.load import open_model, read_model
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.model import load_model_config
from r1parallel.config.schema import ContextConfig, RunConfig, SamplingConfig
from r1parallel.data.mindrecord import DatasetRows
from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.parameters import load_parameters, load_slices
from r1parallel.parallel.device import setup_device
from r1parallel.parallel.launch.world import World
from r1parallel.rewards import Scores
from r1parallel.rl.experience.experience import Experience, collect
from r1parallel.rl.models import Actor
from r1parallel.rl.objective.losses import token_values
from r1parallel.rl.trainer import row_shape
from r1parallel.rl.update import Batch, token_inputs


def main() -> None:
    job = read_job(sys.argv[1])
    setup_device(ContextConfig())
    work = {"rollout": rollout, "training": training}[job["kind"]]
    timed(work(job), job, ("mindspore", "numpy"))


def rollout(job: dict[str, Any]) -> Work:
    """Draw completions of all prompts, from other random numbers in each iteration."""
    config, prompts = load_model_config(job["model"]), job["prompts"]
    sampling, longest = SamplingConfig(max_tokens=job["max_tokens"]), max(map(len, prompts))
    operators = choose_operators("float32", trained=False)
    engine = RolloutEngine(
        config,
        sampling,
        job["rows"],
        longest,
        job["stop_ids"],
        job["pad_id"],
        operators=operators,
    )
    load_parameters(engine.model, read_model(job["model"], config), job["model"])
    return lambda number: counted(engine.generate(prompts, number, range(len(prompts))).lengths.tolist())


def training(job: dict[str, Any]) -> Work:
    """One update on the same completions again and again."""
    config, model_config = load_config(job["config"], job["flags"], GRPO_SECTIONS), load_model_config(job["model"])
    settings, experience = config.rl_config, given_experience(job, config)
    shape = row_shape(config, data_set(job))
    actor = Actor(config, model_config, shape, 1, World())
    load_slices(actor.model, open_model(job["model"], model_config), actor.layout, 0)
    samples = np.arange(len(job["completions"]))

    def update(number: int) -> dict[str, Any]:
        rows = shape.rows(experience, samples, actor.train.rows)
        given = token_inputs(experience, Batch(0, samples, rows), settings, settings.beta)
        values = token_values(actor.train.accumulate(rows.tokens, rows.row_data, given.concatenated()))
        loss = float(values.loss.sum(dtype=np.float64))
        norm = actor.train.apply(job["lr"], loss, f"iteration {number}")
        return {
            "tokens": experience.tokens.size,
            "loss": loss,
            "norm": norm,
            "launches": len(rows.tokens) // actor.train.rows,
        }

    return update


def data_set(job: dict[str, Any]) -> DatasetRows:
    """The job's prompts as a data set."""
    prompts = np.array(job["prompts"], np.int32)
    answers, lengths = np.zeros((len(prompts), 1), np.int32), np.full(len(prompts), prompts.shape[1], np.int32)
    return DatasetRows(prompts, lengths, answers, np.zeros(len(prompts), np.int32), [""] * len(prompts))


def given_experience(job: dict[str, Any], config: RunConfig) -> Experience:
    """The job's completions as if they had been drawn."""
    tokens = np.array(job["completions"], np.int32)
    count, slots = tokens.shape
    logps = np.zeros((count, slots), np.float32)
    drawn = Completions(tokens, np.full(count, slots, np.int32), logps, logps, np.zeros(count, bool))
    scores = Scores(np.zeros(count), {}, np.zeros(count, bool), 0)
    prompts = job["prompts"]
    experience = collect(prompts, np.zeros(count, int), drawn, scores, config.rl_config, len(prompts[0]), 0)
    experience.advantages = np.repeat(np.array(job["advantages"], np.float32)[:, None], slots, 1)
    return experience


if __name__ == "__main__":
    main()
