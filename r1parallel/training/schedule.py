"""The learning rate schedule."""

import math

from r1parallel.config.schema import LrScheduleConfig


def learning_rate(schedule: LrScheduleConfig, update: int) -> float:
    """Learning rate of optimizer step `update` (from 0): linear warm-up to lr, then decay to min_lr.

    Cosine as in Loshchilov and Hutter 2017, one period, no restart.
    """
    if update < schedule.warmup_step:
        return schedule.lr * (update + 1) / schedule.warmup_step
    if schedule.lr_decay_style == "constant":
        return schedule.lr
    done = (update - schedule.warmup_step) / max(1, schedule.decay_steps - schedule.warmup_step)
    done = min(1.0, done)
    left = 1.0 - done if schedule.lr_decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * left
