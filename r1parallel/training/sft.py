"""Supervised fine-tuning: the answer's tokens are learned, the prompt's are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.checkpoint.export import save_model_merged
from r1parallel.checkpoint.load import open_model
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.config.layout_checks import check_sequence_parallel
from r1parallel.config.loading.load import SFT_SECTIONS
from r1parallel.config.model import ModelConfig
from r1parallel.config.schema import RunConfig
from r1parallel.data.batches import RowOrder, right_aligned
from r1parallel.data.mindrecord import DatasetRows
from r1parallel.errors import UserError
from r1parallel.models.fused.operators import choose_operators
from r1parallel.models.logps import CompletionLogps
from r1parallel.models.parameters import (
    TensorSource,
    load_slices,
    parameter_values,
    random_source,
    share_parameters,
    unallocated,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.monitor.phases import PhaseTimer
from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.from_config import layout_from_config
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.training.forward import compiled_logps
from r1parallel.training.inputs import Inputs, fingerprint, load_inputs, load_rows
from r1parallel.training.run import StepRecord, Task, run
from r1parallel.training.schedule import learning_rate
from r1parallel.training.step import TrainStep


class SFTLoss(nn.Cell):
    """−Σ weight · logp, with weight = 1 / (answer tokens of the whole optimizer step)."""

    def __init__(self, logps: CompletionLogps):
        super().__init__(auto_prefix=False)
        self.logps = logps
        self.mul, self.negate = ops.Mul(), ops.Neg()

    def construct(self, tokens_BS: Tensor, starts_B: Tensor, weights_BC: Tensor) -> Tensor:
        """Each token's share of the loss, [B, C]."""
        return self.negate(self.mul(self.logps(tokens_BS, starts_B), weights_BC))


class SFTTrainer:
    """Model, optimizer and data of one SFT run. Every rank makes one and calls the same methods.

    Args:
        config: checked.
        model_config: sizes.
        rows: what to learn.
        held_out: what to measure on; None: nothing.
        world: which rank this is.
    """

    def __init__(
        self,
        config: RunConfig,
        model_config: ModelConfig,
        rows: DatasetRows,
        held_out: DatasetRows | None,
        world: World,
    ):
        settings, actor = config.sft_config, config.actor_config
        parallel = actor.parallel_config
        self.config, self.rows, self.held_out, self.world = config, rows, held_out, world
        self.layout = layout_from_config(config, model_config, "actor", world.size)
        micro_rows = settings.batch_size * parallel.data_parallel
        self.update_rows = micro_rows * parallel.micro_batch_num
        self.order = RowOrder(len(rows.prompt_ids), self.update_rows, settings.seed)
        self.total = settings.max_steps or settings.epochs * self.order.steps_per_epoch
        every = [rows] if held_out is None else [rows, held_out]
        self.prompt_length = max(int(r.prompt_lengths.max()) for r in every)
        self.answer_length = max(int(r.answer_lengths.max()) for r in every)
        slots = self.prompt_length + self.answer_length
        _check_slots(slots, model_config)
        check_sequence_parallel(parallel, settings.batch_size, slots)
        operators = choose_operators(config.context.compute_dtype, trained=True)
        with unallocated():
            self.model = Qwen2ForCausalLM(model_config, slots, operators=operators)
        graph_rows, split = micro_rows // parallel.micro_batch_interleave_num, parallel.model_parallel > 1
        loss = SFTLoss(CompletionLogps(self.model, graph_rows, self.prompt_length, self.answer_length, split))
        examples = self.batch(rows, np.zeros(self.update_rows, np.int64))
        self.step = TrainStep(loss, self.model.trainable_params(), self.layout, world, actor, examples)
        self._eval_rows = settings.eval_batch_size * parallel.data_parallel
        if held_out is not None:
            with unallocated():
                twin = Qwen2ForCausalLM(model_config, slots, operators=operators)
            share_parameters(self.model, twin)
            self._eval_logps = compiled_logps(
                twin,
                self._eval_rows,
                self.prompt_length,
                self.answer_length,
                self.layout,
                world,
                parallel.use_seq_parallel,
            )

    def batch(self, rows: DatasetRows, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens int32 [N, S], starts int32 [N], mask float32 [N, C] (1 on answer tokens)."""
        prompts = [rows.prompt_ids[i, : rows.prompt_lengths[i]].tolist() for i in indices]
        tokens, starts = right_aligned(prompts, self.prompt_length, 0)
        answers = np.zeros((len(indices), self.answer_length), np.int32)
        width = min(self.answer_length, rows.answer_ids.shape[1])
        answers[:, :width] = rows.answer_ids[indices, :width]
        mask = np.arange(self.answer_length) < rows.answer_lengths[indices, None]
        return np.concatenate([tokens, answers], axis=1), starts, mask.astype(np.float32)

    def update(self, number: int) -> dict[str, float]:
        """Optimizer step `number` (from 0); its metrics."""
        indices = self.order.indices(number)
        tokens, starts, mask = self.batch(self.rows, indices)
        weights = (mask / mask.sum(dtype=np.float64)).astype(np.float32)
        loss = float(self.step.accumulate(tokens, starts, weights).sum(dtype=np.float64))
        lr = learning_rate(self.config.actor_config.lr_schedule, number)
        named = ", ".join(str(i) for i in indices[:8])
        norm = self.step.apply(lr, loss, f"update {number + 1}, data set rows {named}")
        return {"loss": loss, "lr": lr, "grad_norm": norm, "tokens": float(mask.sum())}

    def evaluate(self) -> dict[str, float]:
        """Mean loss and mean probability of the answer tokens of the held-out rows."""
        assert self.held_out is not None
        size, count = self._eval_rows, len(self.held_out.prompt_ids)
        total, likely, tokens_seen = 0.0, 0.0, 0.0
        for first in range(0, count, size):
            # The last batch is filled up with its first row, which then counts once.
            indices = np.array([first + i if first + i < count else first for i in range(size)])
            tokens, starts, mask = self.batch(self.held_out, indices)
            mask[count - first :] = 0.0
            with waiting("evaluation"):
                logps = self._eval_logps(Tensor(tokens), Tensor(starts)).asnumpy()
            total -= float((logps * mask).sum(dtype=np.float64))
            likely += float((np.exp(logps) * mask).sum(dtype=np.float64))
            tokens_seen += float(mask.sum())
        return {"eval_loss": total / tokens_seen, "eval_token_probability": likely / tokens_seen}


def _check_slots(slots: int, model_config: ModelConfig) -> None:
    if slots > model_config.max_position_embeddings:
        raise UserError(
            f"rows need {slots} positions, the model has {model_config.max_position_embeddings}; "
            "prepare the data with a smaller --seq_length"
        )


@dataclass
class SFTInputs(Inputs):
    """`held_out`: the rows to measure on, or None."""

    held_out: DatasetRows | None


def _read_inputs(config: RunConfig) -> SFTInputs:
    settings = config.sft_config
    inputs = load_inputs(config.actor_config.model_config, settings.tokenizer_dir, settings.dataset_file)
    held_out = load_rows(settings.eval_dataset_file, inputs.model) if settings.eval_dataset_file else None
    _check_answers(settings.dataset_file, inputs.rows)
    if held_out is not None:
        _check_answers(settings.eval_dataset_file, held_out)
    return SFTInputs(inputs.model, inputs.tokenizer, inputs.rows, held_out)


def _check_answers(file: str, rows: DatasetRows) -> None:
    empty = int((rows.answer_lengths == 0).sum())
    if empty:
        raise UserError(f"{file}: {empty} rows have no answer to learn; prepare it without --prompts_only")


class SFTTraining:
    """An SFT run as `run` sees it; see `Training`."""

    def __init__(self, config: RunConfig, inputs: SFTInputs, world: World):
        self._config, self._inputs, self._rank = config, inputs, world.rank
        self._trainer = SFTTrainer(config, inputs.model, inputs.rows, inputs.held_out, world)
        self.train, self.total = self._trainer.step, self._trainer.total

    def identity(self) -> dict[str, Any]:
        return {
            "data_set": fingerprint(self._inputs.rows),
            "update_rows": self._trainer.update_rows,
            "seed": self._config.sft_config.seed,
        }

    def layouts(self) -> dict[str, ModelLayout]:
        return {"actor": self._trainer.layout}

    def load(self) -> None:
        path, sizes = self._config.actor_config.load, self._inputs.model
        self._load(open_model(path, sizes) if path else random_source(sizes, self._config.sft_config.seed))

    def restore(self, sources: Mapping[str, TensorSource], state: Mapping[str, Any]) -> None:
        self._load(sources["actor"])

    def _load(self, source: TensorSource) -> None:
        load_slices(self._trainer.model, source, self._trainer.layout, self._rank)

    def run_step(self, number: int, timer: PhaseTimer) -> StepRecord:
        trainer, interval = self._trainer, self._config.sft_config.eval_interval
        with timer.phase("update"):
            metrics = trainer.update(number)
        if trainer.held_out is not None and ((number + 1) % interval == 0 or number + 1 == self.total):
            with timer.phase("eval"):
                metrics |= trainer.evaluate()
        return StepRecord(metrics, {"loss": f"{metrics['loss']:.4f}"})

    def weights(self) -> dict[str, Shards]:
        trainer = self._trainer
        return {
            "actor": Shards(trainer.layout, parameter_values(trainer.model, trainer.layout, self._rank, copy=False))
        }

    def counters(self) -> dict[str, Any]:
        return {}


def _compile_actor(config: RunConfig, model_config: ModelConfig, slots: int, world: World) -> nn.Cell:
    parallel = config.actor_config.parallel_config
    count = config.sft_config.batch_size * parallel.data_parallel * parallel.micro_batch_num
    tokens, lengths = np.zeros((count, slots), np.int32), np.full(count, slots, np.int32)
    rows = DatasetRows(tokens, lengths, tokens, lengths, [""] * count)
    return SFTTrainer(config, model_config, rows, None, world).model


SFT = Task(
    name="sft",
    title=lambda config: "Supervised fine-tuning",
    section="sft_config",
    sections=SFT_SECTIONS,
    phase="update",
    read_inputs=_read_inputs,
    build=SFTTraining,
    save_model=save_model_merged,
    compile_actor=_compile_actor,
)


def run_sft(config: RunConfig) -> Path:
    """Train as configured; returns the folder of the final model, see `run`."""
    return run(SFT, config)
