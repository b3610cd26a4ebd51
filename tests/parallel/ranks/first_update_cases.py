"""The first step of a fresh run under every preset, on one rank or on many, without a generator.

What the generator would draw is made up, so that of a run only the training graph, the log-probs before it and the
reference are compiled; presets of one layout share the last two.

No size is a multiple of a vector register: a kernel may round the last elements of its array in another way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import numpy as np
from helpers import made_up

from r1parallel.checkpoint.load import ArraySource
from r1parallel.config.checks import check_config
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.model import ModelConfig
from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RunConfig
from r1parallel.models.parameters import random_values
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.world import World
from r1parallel.rl.trainer import Trainer
from r1parallel.rl.update import TokenStatistics, run_update

PROMPT, SLOTS, PACK_LENGTH, VOCABULARY = 5, 6, 26, 38
LAYOUTS = {"one": (1, 1, 1), "dp2-tp2": (2, 2, 1), "tp2-pp2": (1, 2, 2)}  # dp, tp, pp of the actor


@dataclass(frozen=True)
class Case:
    """One run."""

    preset: str
    packing: bool
    layout: str

    @property
    def name(self) -> str:
        return f"{self.preset}-{'packed' if self.packing else 'padded'}-{self.layout}"

    @property
    def model(self) -> ModelConfig:
        """One layer a stage. The embedding is tied: the last stage has a copy of it."""
        layers = LAYOUTS[self.layout][2]
        return ModelConfig(
            VOCABULARY, 40, 68, layers, 4, 2, rope_theta=100.0, max_position_embeddings=16, tie_word_embeddings=True
        )


ONE_RANK = [Case(preset, packing, "one") for packing in (False, True) for preset in PRESETS]
# Every preset once, packed or padded, and the tied embedding's copy; the others take as long again.
FOUR_RANKS = [Case(case.preset, case.packing, "dp2-tp2") for case in (*ONE_RANK[0:7:2], *ONE_RANK[8:14:2])]
FOUR_RANKS.append(Case("grpo", False, "tp2-pp2"))
OTHERS = [Case(case.preset, not case.packing, case.layout) for case in FOUR_RANKS]


def config_of(case: Case) -> RunConfig:
    """16 completions; two passes of three updates of 6, 5 and 5; micro-batches of 2 rows a rank, beta above 0."""
    dp, tp, pp = LAYOUTS[case.layout]
    needed = {"rl_config.dataset_file": "d", "rl_config.tokenizer_dir": "t", "actor_config.load": "c"}
    values = {
        "rl_config.algorithm": case.preset,
        "rl_config.packing": case.packing,
        "rl_config.pack_length": PACK_LENGTH if case.packing else 0,
        "rl_config.beta": PRESETS[case.preset].get("beta") or 0.05,
        "rl_config.batch_size": 2,
        "rl_config.mini_batch_size": 7,
        "rl_config.num_generations": 4,
        "rl_config.num_rollouts": 1,
        "rl_config.chunk_size": 4 // (dp * tp * pp),
        "rl_config.num_iterations": 2,
        "rl_config.calculate_entropy": case.preset == "grpo",
        "rl_config.rollout_gap_limit": 0,  # nobody drew the completions
        "ref_config.ref_model_batch_size": 2,
        "actor_config.model_config": "m",
        "actor_config.lr_schedule.lr": 0.01,
        "actor_config.lr_schedule.warmup_step": 0,
        "actor_config.parallel_config.micro_batch_num": 2,
        "generate_config.max_prompt_length": PROMPT,
        "generate_config.sampling_config.max_tokens": SLOTS,
        "generate_config.sampling_config.temperature": 0.9,
        "generate_config.parallel_config.data_parallel": dp * tp * pp,
    }
    # The reference has no stages. It is cut as the actor is, and a rank takes as many rows at a time.
    for model, layout in (("actor_config", (dp, tp, pp)), ("ref_config", (dp * pp, tp, 1))):
        for name, parts in zip(("data_parallel", "model_parallel", "pipeline_stage"), layout, strict=True):
            values[f"{model}.parallel_config.{name}"] = parts
    config = load_config(None, needed | {key: str(value) for key, value in values.items()}, GRPO_SECTIONS)
    check_config(config, GRPO_SECTIONS, dp * tp * pp)
    return config


def data_set() -> SimpleNamespace:
    """Eight prompts of one to PROMPT tokens."""
    lengths = np.arange(8) % PROMPT + 1
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (8, PROMPT))
    return SimpleNamespace(prompt_ids=ids, prompt_lengths=lengths, solutions=[str(i) for i in range(8)])


class Digits:
    """Decodes ids to digits, of which the made-up reward counts the sevens."""

    stop_ids, pad_token_id = (1,), 0

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(str(i % 10) for i in ids)


class Runs:
    """First steps, one after the other."""

    def __init__(self, world: World):
        self.world = world
        self.first: dict[tuple[str, bool], Trainer] = {}

    def metrics(self, case: Case) -> dict[str, float]:
        """Of the first step of a fresh run, and loss and gradient norm of its first update."""
        first = self.first.get((case.layout, case.packing))
        start = ArraySource(random_values(case.model, 0, 0.3), "random")
        engine = made_up.FakeEngine(8, SLOTS, VOCABULARY)
        with (
            mock.patch.multiple("r1parallel.rl.trainer", to_generator=lambda *_: None, **self._shared(first)),
            mock.patch.object(Trainer, "_make_engine", lambda *_: engine),
            mock.patch("r1parallel.rl.experience.rollout.score_on_leader", made_up.scores_of_texts),
            mock.patch("r1parallel.rl.models.needs_old_logps", lambda *_: first is None),
        ):
            trainer = Trainer(config_of(case), case.model, data_set(), Digits(), self.world)
            trainer.pad_id = 0
            if first is None:
                self.first[case.layout, case.packing] = trainer
            else:
                trainer.actor.old_logps = first.actor.old_logps
                trainer.actor.before_old_logps = first.actor.before_old_logps
                first.load(start, None)
            trainer.load(start, None)
            with mock.patch("r1parallel.rl.trainer.run_update", wraps=run_update) as updates:
                metrics = trainer.run_step(0, PhaseTimer(), False).metrics
            statistics: TokenStatistics = updates.call_args.kwargs["statistics"]
            return metrics | {"first_loss": statistics.losses[0], "first_norm": statistics.norms[0]}

    @staticmethod
    def _shared(first: Trainer | None) -> dict[str, object]:
        return {} if first is None else {"Reference": lambda *_: first.reference}


def faults(metrics: dict[str, float]) -> dict[str, float]:
    """What is not as the first step of a fresh run must be."""
    zero = ("first_update_ratio_deviation", "first_update_kl_max", "first_update_clip_fraction")
    wrong = {name: metrics[name] for name in zero if metrics[name] != 0.0}
    # Later updates have moved, so that what is looked at can be other than 0.
    moved = metrics["ratio_mean"] != 1.0 and metrics["learned_fraction"] > 0
    return wrong if moved and np.isfinite(list(metrics.values())).all() else wrong | {"did not move": 1.0}
