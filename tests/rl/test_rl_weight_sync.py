"""New weights for the generator: what its Parameters hold afterwards is compared with the actor's."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from helpers.tiny_runs import SIZES
from mindspore import Tensor

from r1parallel.config.model import ModelConfig
from r1parallel.models.decoding.model import token_model
from r1parallel.models.fused.operators import PLAIN, fused
from r1parallel.models.parameters import (
    load_parameters,
    model_parameters,
    parameter_values,
    random_values,
    set_slices,
    transposed_weights,
)
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.rl.models import WeightSync

pytestmark = pytest.mark.usefixtures("mindspore_cpu")

CONFIG = ModelConfig(**SIZES | {"hidden_size": 64})  # heads of 16, as the operators for Ascend want them
LAYOUT = ModelLayout(CONFIG, Mesh())
WEIGHT = "model.layers.0.attention.wq.weight"


@pytest.fixture(params=["transposed", "bfloat16"])
def models(request):
    """Actor and a generator on one rank that keeps its Parameters in another way: turned, or rounded."""
    actor, values = Qwen2ForCausalLM(CONFIG, 8), random_values(CONFIG, 0)
    load_parameters(actor, values, "random")
    generator = token_model(CONFIG, 2, 8, PLAIN if request.param == "transposed" else fused(ms.bfloat16, ms.bfloat16))
    return actor, generator


def sync_of(actor, generator):
    source = SimpleNamespace(layout=LAYOUT, values=lambda: parameter_values(actor, LAYOUT, 0, copy=False))
    return WeightSync(source, generator, LAYOUT, World())


def test_a_copy_on_one_rank_is_compared_and_right(models):
    actor, generator = models
    sync_of(actor, generator)()
    expected, found = parameter_values(actor), parameter_values(generator)
    rounded = model_parameters(generator)[WEIGHT].dtype == ms.bfloat16
    assert rounded or WEIGHT in transposed_weights(generator)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2**-8 if rounded else 0, err_msg=name)
    assert rounded == any((found[name] != value).any() for name, value in expected.items())


def test_an_element_that_changes_after_it_is_set_is_found(models, monkeypatch):
    actor, generator = models

    def corrupting(model, values):
        set_slices(model, values)
        parameter = model_parameters(model)[WEIGHT]
        held = parameter.asnumpy().astype(np.float32)
        held[3, 5] *= 1.5
        parameter.set_data(Tensor(held, parameter.dtype))

    monkeypatch.setattr("r1parallel.rl.models.set_slices", corrupting)
    with pytest.raises(RuntimeError, match=f"resharding changed 1 slices: {WEIGHT} on rank 0"):
        sync_of(actor, generator)()
