"""Published algorithms as values of `rl_config`. A key that the YAML file or the command line gives is stronger.

`docs/algorithms.md` names each paper and every deviation from it. What a preset leaves out has the schema's default.
"""

PRESETS: dict[str, dict[str, str | int | float | bool]] = {
    # Shao et al. 2024, arXiv 2402.03300: the defaults.
    "grpo": {},
    # Liu et al. 2025, arXiv 2503.20783: no division by the length or the standard deviation, no KL.
    "dr_grpo": {"loss_aggregation": "constant", "advantage_scale": "none", "beta": 0.0},
    # Yu et al. 2025, arXiv 2503.14476.
    "dapo": {
        "loss_aggregation": "token_mean",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "dynamic_sampling": True,
        "overlong": "penalty",
        "beta": 0.0,
    },
    # Zheng et al. 2025, arXiv 2507.18071.
    "gspo": {"importance_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "beta": 0.0},
    # MiniMax 2025, arXiv 2506.13585: no lower limit of the weight.
    "cispo": {
        "policy_loss": "cispo",
        "loss_aggregation": "token_mean",
        "epsilon_low": 1.0,
        "epsilon_high": 4.0,
        "beta": 0.0,
    },
    # Ahmadian et al. 2024, arXiv 2402.14740: log-probs of whole completions are summed, not averaged.
    "rloo": {
        "advantage_estimator": "rloo",
        "advantage_scale": "none",
        "policy_loss": "reinforce",
        "loss_aggregation": "constant",
        "loss_constant": 1,
        "beta": 0.05,
        "kl_estimator": "k1",
        "kl_place": "reward",
    },
    # Hu et al. 2025, arXiv 2501.03262.
    "reinforce_plus_plus": {
        "advantage_estimator": "reinforce_plus_plus",
        "advantage_scale": "batch",
        "loss_aggregation": "token_mean",
        "beta": 0.01,
        "kl_estimator": "k1",
        "kl_place": "reward",
    },
}
