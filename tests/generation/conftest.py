"""Engines on a small random model."""

from collections.abc import Callable

import numpy as np
import pytest
from small_engine import GREEDY, PAD_ID, PROMPT_LENGTHS, PROMPT_SLOTS, ROWS, SAMPLED

from r1parallel.generation.engine import Completions, RolloutEngine
from r1parallel.models.fused.operators import FUSED, PLAIN, Operators
from r1parallel.models.parameters import load_parameters


@pytest.fixture(scope="module")
def values(tiny_config, noisy_values) -> dict[str, np.ndarray]:
    return noisy_values(tiny_config, seed=4)


@pytest.fixture(scope="module", params=[PLAIN, FUSED], ids=["plain", "fused"])
def operators(request) -> Operators:
    """What the engine's model is made of; the model without a cache is always plain."""
    request.getfixturevalue("mindspore_cpu" if request.param is PLAIN else "fused_kernels")
    return request.param


@pytest.fixture(scope="module")
def make_engine(operators, tiny_config, values) -> Callable[..., RolloutEngine]:
    """make_engine(sampling, stop_ids, rows, pad_id); each is made once."""
    made: dict[str, RolloutEngine] = {}

    def make(sampling=GREEDY, stop_ids=(), rows=ROWS, pad_id=PAD_ID) -> RolloutEngine:
        key = repr((sampling, stop_ids, rows, pad_id))
        if key not in made:
            made[key] = RolloutEngine(tiny_config, sampling, rows, PROMPT_SLOTS, stop_ids, pad_id, operators=operators)
            load_parameters(made[key].model, values, "random values")
        return made[key]

    return make


@pytest.fixture(scope="module")
def prompts(tiny_config) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, tiny_config.vocab_size, length).tolist() for length in PROMPT_LENGTHS]


@pytest.fixture(scope="module")
def sampled(make_engine, prompts) -> Completions:
    """Never stopped."""
    return make_engine(SAMPLED).generate(prompts, 0, range(len(prompts)))


@pytest.fixture
def launches(monkeypatch) -> Callable[[RolloutEngine], list[str]]:
    """launches(engine) → a list that grows: "fill" for prompts, "token" for tokens of every row."""

    def watch(engine: RolloutEngine) -> list[str]:
        done: list[str] = []
        engine._compile()
        for kind, name in (("fill", "_fill"), ("token", "_next_tokens")):
            launch = getattr(engine, name)
            monkeypatch.setattr(
                engine, name, lambda *inputs, launch=launch, kind=kind: done.append(kind) or launch(*inputs)
            )
        return done

    return watch
