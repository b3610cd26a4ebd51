"""Parts of a run that take turns in benchmarks.speed besides rollout and training: compilation, rewards, data."""

from collections.abc import Sequence

from benchmarks.speed.answers import answer_batches
from benchmarks.speed.bench import GRPO_YAML, Bench, Found, Round, texts
from benchmarks.speed.cases import COMPLETION, PROMPT, TRAINING_FLAGS
from r1parallel.errors import UserError

LAYERS = (10, 30)
REWARDS = {"reward": "accuracy_reward", "reward_math_verify": "math_verify_reward"}  # case → ours
DATA_CASES = ("data_prepare", "data_read")


def compilation(bench: Bench) -> Round:
    """The training graph with the first layers of the model and with all; a process compiles once."""
    once = {"warm_up": 0, "iterations": 1, "config": GRPO_YAML, "flags": texts(TRAINING_FLAGS)}
    result: Round = {}
    for layers in LAYERS:
        name = f"compile_{layers}_layers"
        job = once | {"layers": layers, "prompt": PROMPT, "completion": COMPLETION}
        result[name] = {"ours": bench.ours(name, job, "compile")}
    return result


def reward(bench: Bench) -> Round:
    """Our default reward, and ours that does the same work as the peer's; the peer's run is compared with both."""
    job = {"batches": answer_batches(bench.gsm8k, bench.warm_up + bench.iterations)}
    result: Round = {}
    peer: Found | None = None
    for case, name in REWARDS.items():
        ours = bench.ours(case, job | {"reward": name}, "scores")
        peer = peer or bench.peer("reward", job, "scores_peer")
        check_scores(case, scores_of(ours), scores_of(peer))
        result[case] = {"ours": ours, "peer": peer}
    return result


def scores_of(found: Found) -> list[list[float | None]]:
    return [iteration["scores"] for iteration in found["warm_up"] + found["iterations"]]


def check_scores(case: str, ours: Sequence[object], peer: Sequence[object]) -> None:
    """Compare all scores.

    Raises:
        UserError: they differ.
    """
    if list(ours) != list(peer):
        raise UserError(f"{case}: ours and the peer judge differently; their times cannot be compared")


def data(bench: Bench) -> Round:
    """GSM8K to files of token ids, and an epoch read from them. Both sides must find the same examples and ids."""
    result: Round = {}
    for case in DATA_CASES:
        job = {"kind": case, "gsm8k": bench.gsm8k}
        result[case] = {
            "ours": bench.ours(case, job, "data"),
            "peer": bench.peer(case, job, "data_peer"),
        }
        check_data(case, *result[case].values())
    return result


def check_data(case: str, ours: Found, peer: Found) -> None:
    """Compare the numbers of examples and, where they are looked at, of token ids.

    Raises:
        UserError: they differ, between the sides or from one iteration to the next.
    """
    both = ours["warm_up"] + ours["iterations"] + peer["warm_up"] + peer["iterations"]
    found = {(one["examples"], one.get("ids")) for one in both}
    if len(found) != 1:
        raise UserError(f"{case}: examples and token ids are {sorted(found, key=str)}; the two cannot be compared")
