"""The objectives of seven papers, each negated to a loss. Defaults of the arguments are the papers' own values.

Where a paper leaves something open, or this repository departs from it, docs/algorithms.md says so.
"""

import numpy as np

from helpers import paper_pieces
from helpers.paper_pieces import (
    Batch,
    Judgement,
    by_constant,
    clipped,
    difference,
    each_completion_alike,
    each_token_alike,
    group_relative,
    kl_estimate,
    leave_one_out,
    only,
    whitened,
    without_equal_groups,
)


def _to_tokens(batch: Batch, advantages: np.ndarray) -> np.ndarray:
    return only(batch.inside, np.repeat(advantages[:, None], batch.old.shape[1], axis=1))


def _clipped_loss(batch: Batch, advantages: np.ndarray, weights: np.ndarray, low: float, high: float):
    def terms(logps: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        ratio = paper_pieces.EXP(difference(batch.tokens, logps, batch.old))
        return [-weights * clipped(ratio, advantages, low, high)]

    return terms


def grpo(batch: Batch, epsilon: float = 0.2, beta: float = 0.04) -> Judgement:
    """Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, eq. 3 and 4; advantages of section 4.1.2.

    Beta is that of section 4.2; the paper gives no epsilon.
    """
    advantages = _to_tokens(batch, group_relative(batch.rewards, batch.group))
    weights = each_completion_alike(batch)
    policy = _clipped_loss(batch, advantages, weights, epsilon, epsilon)

    def terms(logps: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        kl = kl_estimate("k3", only(batch.tokens, logps), only(batch.tokens, batch.ref))
        return [*policy(logps, at), weights * beta * kl]

    return Judgement(advantages, terms)


def dr_grpo(batch: Batch, limit: int, epsilon: float = 0.2) -> Judgement:
    """Liu et al. 2025, arXiv 2503.20783, figure 1 and section 3.2; `limit`, the generation budget, of its listing 1."""
    advantages = _to_tokens(batch, group_relative(batch.rewards, batch.group, scaled=False))
    return Judgement(advantages, _clipped_loss(batch, advantages, by_constant(batch, limit), epsilon, epsilon))


def dapo(batch: Batch, low: float = 0.2, high: float = 0.28) -> Judgement:
    """Yu et al. 2025, arXiv 2503.14476, eq. 8 and 9. Rewards hold the penalty of eq. 13 already."""
    batch = without_equal_groups(batch)
    advantages = _to_tokens(batch, group_relative(batch.rewards, batch.group))
    return Judgement(advantages, _clipped_loss(batch, advantages, each_token_alike(batch), low, high))


def gspo(batch: Batch, low: float = 3e-4, high: float = 4e-4) -> Judgement:
    """Zheng et al. 2025, arXiv 2507.18071: eq. 5, advantages of eq. 6, the ratio of a sequence of eq. 7."""
    advantages = group_relative(batch.rewards, batch.group)
    counted = batch.counted / max(1, batch.counted.sum())

    def terms(logps: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        per_token = difference(batch.tokens, logps, batch.old)
        s = paper_pieces.EXP(per_token.sum(axis=-1) / np.maximum(1, batch.lengths))
        return [-counted * clipped(s, advantages, low, high)]

    return Judgement(_to_tokens(batch, advantages), terms)


def cispo(batch: Batch, most: float = 5.0) -> Judgement:
    """MiniMax 2025, arXiv 2506.13585, eq. 4 and 5, without a lower bound, as the paper says it was used.

    The paper gives no upper bound either; 5 is what Khatri et al. 2025 (ScaleRL, arXiv 2510.13786) found good.
    """
    advantages = _to_tokens(batch, group_relative(batch.rewards, batch.group))
    weights = each_token_alike(batch)

    def terms(logps: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        stopped = np.minimum(paper_pieces.EXP(difference(batch.tokens, at, batch.old)), most)
        return [-weights * stopped * advantages * only(batch.tokens, logps)]

    return Judgement(advantages, terms)


def rloo(batch: Batch, beta: float) -> Judgement:
    """Ahmadian et al. 2024, arXiv 2402.14740: R = r − beta · log(π(y|x) / π_ref(y|x)), one action a completion.

    The gradient of the loss is −1/N · Σ_i (R_i − the others' mean) · ∇ log π(y_i|x). Beta was 0.03 and 0.10 there.
    """
    kl = difference(batch.inside, batch.old, batch.ref).sum(axis=1)
    advantages = leave_one_out(batch.rewards - beta * kl, batch.group)

    def terms(logps: np.ndarray, at: np.ndarray) -> list[np.ndarray]:
        sequences = only(batch.tokens, logps).sum(axis=-1)
        return [-(batch.counted / max(1, batch.counted.sum())) * advantages * sequences]

    return Judgement(_to_tokens(batch, advantages), terms)


def reinforce_plus_plus(batch: Batch, beta: float = 0.01, epsilon: float = 0.2) -> Judgement:
    """Hu et al. 2025, arXiv 2501.03262: A_t = r − beta · Σ_{i ≥ t} KL(i), KL(i) = log(π_old / π_ref) of token i,
    normalised over all tokens of the global batch; PPO's clipped objective, each token alike.
    """
    everything = batch.inside & batch.kept[:, None]
    kl = difference(everything, batch.old, batch.ref)
    to_go = np.array([[row[t:].sum() for t in range(len(row))] for row in kl])
    returns = only(everything, batch.rewards[:, None] - beta * to_go)
    advantages = whitened(returns, everything)
    return Judgement(advantages, _clipped_loss(batch, advantages, each_token_alike(batch), epsilon, epsilon))
