"""The subjects of benchmarks.speed, one round of each: ours and the peer in turn, every one in a fresh process."""

import shutil

from benchmarks.speed.bench import GRPO_YAML, Bench, Found, Round, step_config, texts
from benchmarks.speed.cases import ROLLOUT_CASES, TRAINING_CASES, TRAINING_FLAGS, rollout_data, training_data
from benchmarks.speed.parts import compilation, data, reward
from benchmarks.speed.steps import STEP_WARM_UP, our_run, trl_run
from r1parallel.errors import UserError

LOSS_TOLERANCE, NORM_TOLERANCE = 1e-4, 1e-3  # nats; relative


def rollout(bench: Bench) -> Round:
    """Three cases; without stop ids both sides must have drawn the same number of tokens."""
    result: Round = {}
    for case in ROLLOUT_CASES:
        job = {"kind": "rollout", **rollout_data(case, bench.model, bench.gsm8k)}
        result[case] = {"ours": bench.ours(case, job), "peer": bench.peer(case, job)}
        expected = len(job["prompts"]) * job["max_tokens"]
        for side, found in result[case].items():
            drawn = {iteration["tokens"] for iteration in found["iterations"]}
            if not job["stop_ids"] and drawn != {expected}:
                raise UserError(f"{case}, {side}: drew {drawn} tokens, not {expected}; the two cannot be compared")
    return result


def training(bench: Bench) -> Round:
    """Ours padded, the peer, ours packed: the peer's run is compared with both."""
    config = step_config(TRAINING_FLAGS)
    optimizer = config.actor_config.optimizer
    data = {"kind": "training", **training_data(bench.model)}
    adamw = {
        "betas": [optimizer.adam_beta1, optimizer.adam_beta2],
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    peer_job = data | {"adamw": adamw, "max_grad_norm": optimizer.max_grad_norm}
    result: Round = {}
    peer: Found | None = None
    for case, flags in TRAINING_CASES.items():
        job = data | {"config": GRPO_YAML, "flags": texts(TRAINING_FLAGS | flags)}
        ours = bench.ours(case, job)
        peer = peer or bench.peer("training", peer_job)
        check_agreement(case, ours, peer)
        result[case] = {"ours": ours, "peer": peer}
    return result


def check_agreement(case: str, ours: Found, peer: Found) -> None:
    """Compare loss and gradient norm of the first update, before which both have the same weights.

    Raises:
        UserError: they differ.
    """
    mine, theirs = (found["warm_up"] + found["iterations"] for found in (ours, peer))
    losses, norms = (tuple(side[0][key] for side in (mine, theirs)) for key in ("loss", "norm"))
    far = abs(losses[0] - losses[1]) >= LOSS_TOLERANCE or abs(norms[0] / norms[1] - 1) >= NORM_TOLERANCE
    if far or any(value != value for value in (*losses, *norms)):
        raise UserError(
            f"{case}: ours and the peer do not compute the same: loss {losses[0]} and {losses[1]}, "
            f"gradient norm {norms[0]} and {norms[1]}; their times cannot be compared"
        )


def grpo(bench: Bench) -> Round:
    """Whole steps of full-length completions; the first ones are not counted."""
    steps = STEP_WARM_UP + bench.steps
    return {"grpo": {"ours": our_run(bench, "grpo", steps), "peer": trl_run(bench, "grpo", steps)}}


def startup(bench: Bench) -> Round:
    """From the start of a process to the end of its first GRPO step: ours, the peer, ours again.

    Ours has compiled nothing before the first time: neither kernels nor graphs.
    """
    shutil.rmtree(bench.cache, ignore_errors=True)
    first = our_run(bench, "startup_first", 1)
    peer = trl_run(bench, "startup", 1)
    second = our_run(bench, "startup_second", 1)
    return {
        "startup_first": {"ours": from_start(first), "peer": from_start(peer)},
        "startup_second": {"ours": from_start(second), "peer": from_start(peer)},
    }


def from_start(found: Found) -> Found:
    """Of a run of one step: its seconds are counted from the start of the process."""
    return found | {"warm_up": [], "iterations": [{"seconds": found["first"]}]}


SUBJECTS = {
    "rollout": rollout,
    "training": training,
    "grpo": grpo,
    "startup": startup,
    "compile": compilation,
    "reward": reward,
    "data": data,
}
