"""TRL's own trainers, made without a model: their methods turn given completions into advantages and a loss, in fp64.

Nothing of TRL is copied here. Only what would start a model or a generator is replaced.
"""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from helpers.paper_cases import Case

PAD, STOP, WORD, PROMPT = 0, 1, 2, [3, 4]


class Accelerator:
    """One process."""

    num_processes, process_index, sync_gradients, device = 1, 0, True, torch.device("cpu")

    def gather(self, value):
        return value

    gather_for_metrics = gather

    def reduce(self, value, reduction):
        return value


class Model:
    training, is_gradient_checkpointing = True, False


ARGUMENTS = {
    "use_bias_correction_kl": False,
    "delta": None,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing_kwargs": None,
    "per_device_train_batch_size": 64,
}
ATTRIBUTES = {
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "beta": 0.0,
    "scale_rewards": "group",
    "mask_truncated_completions": False,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_min": None,
    "vllm_importance_sampling_clip_max": 2.0,
    "entropy_coef": 0.0,
    "current_gradient_accumulation_steps": 1,
    # Not looked at by any test.
    "num_iterations": 1,
    "multi_objective_aggregation": "sum_then_normalize",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_adaptive_entropy": False,
    "aux_loss_enabled": False,
    "normalize_advantages": False,
    "reward_clip_range": None,
    "log_multimodal": False,
    "environment_factories": None,
    "environments": None,
    "tools": None,
    "pad_to_multiple_of": None,
}


class Judge:
    """One of TRL's trainers over a case.

    Args:
        trainer: the class.
        case: what was drawn; old log-probs are the policy's when it was drawn.
        drawn: log-probs by the engine that drew it, [N, C]; None: none are known.
        entropies: of the policy, [N, C].
        changes: of the arguments and attributes above.
    """

    def __init__(self, trainer: type, case: Case, drawn=None, entropies=None, **changes):
        batch = case.batch
        args = {name: changes.pop(name, value) for name, value in ARGUMENTS.items()}
        self.judge = object.__new__(trainer)
        self.case, self.drawn = case, drawn
        clean = [torch.tensor(np.where(batch.inside, array, 0.0)) for array in (case.logps, batch.old, batch.ref)]
        self.logps, self.old, self.ref = clean
        self.logps.requires_grad_()
        self.entropies = torch.zeros_like(self.old) if entropies is None else torch.tensor(entropies)
        model, reference = Model(), Model()
        given = {
            **ATTRIBUTES,
            "accelerator": Accelerator(),
            "args": SimpleNamespace(**args),
            "model": model,
            "ref_model": reference,
            "num_generations": batch.group,
            "max_completion_length": case.logps.shape[1],
            "eos_token_ids": [STOP],
            "_tokenizer": SimpleNamespace(pad_token_id=PAD),
            "reward_weights": torch.ones(1, dtype=torch.float64),
            "reward_funcs": [None],
            "reward_func_names": ["given"],
            "_metrics": {"train": defaultdict(list)},
            "_logs": {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list)},
            "_pending_extra_logs": {},
            "_pending_metrics": {},
            **changes,
        }
        given["_entropy_bonus_enabled"] = given["entropy_coef"] != 0.0
        for name, value in given.items():
            setattr(self.judge, name, value)
        self.judge._generate = self._generated
        self.judge._calculate_rewards = lambda *_: torch.tensor(batch.rewards)[:, None]
        self.judge._get_per_token_logps_and_entropies = self._scored

    def _generated(self, prompts):
        batch = self.case.batch
        ids = [
            [WORD] * (length - 1) + [WORD if cut_off else STOP]
            for length, cut_off in zip(batch.lengths, batch.masked, strict=True)
        ]
        texts = ["" for _ in ids]
        if "GRPO" not in type(self.judge).__name__:
            return [PROMPT] * len(ids), ids, texts
        drawn = None
        if self.drawn is not None:
            drawn = [row[:length].tolist() for row, length in zip(self.drawn, batch.lengths, strict=True)]
        return [PROMPT] * len(ids), ids, None, texts, drawn, {}, None, None

    def _scored(self, model, *_, **__):
        if model is self.judge.ref_model:
            return self.ref, None, None
        if model is self.judge.model:
            return self.old, None, None
        return self.logps[self.rows], self.entropies[self.rows], None

    def inputs(self) -> dict[str, torch.Tensor]:
        """What TRL makes of completions and rewards: advantages, masks, corrections."""
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            made = self.judge._generate_and_score_completions([{"prompt": ""}] * len(self.case.logps))
        finally:
            torch.set_default_dtype(default)
        # TRL leaves these out where it takes old log-probs for the policy's own.
        if "GRPO" in type(self.judge).__name__:
            made["old_per_token_logps"] = self.old
        return made

    def loss(self, inputs: dict[str, torch.Tensor], rows: slice = slice(None)) -> tuple[float, np.ndarray]:
        """TRL's loss of one micro-batch of these rows, and its gradient by all log-probs."""
        self.rows = rows
        part = {name: value[rows] if value.dim() else value for name, value in inputs.items()}
        loss = self.judge._compute_loss("the policy", part)
        (gradient,) = torch.autograd.grad(loss, self.logps)
        return loss.item(), gradient.numpy()
