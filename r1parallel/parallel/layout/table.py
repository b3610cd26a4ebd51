"""The layout table: for each parameter of the model, which dim is split over tp and which stage owns it."""

from dataclasses import dataclass
from math import prod

from r1parallel.config.model import ModelConfig
from r1parallel.config.stages import even_stages
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.regions import Region, shape_of
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout

# Last parts of a parameter's name → the dim that tp splits; None: every tp rank holds all of it. Weights are
# [out, in]: dim 0 gives each rank its own outputs (heads, inner units, vocabulary), dim 1 its own inputs.
SPLIT_DIMS: dict[str, int | None] = {
    "tok_embeddings.embedding_weight": 0,
    "attention.wq.weight": 0,
    "attention.wq.bias": 0,
    "attention.wk.weight": 0,
    "attention.wk.bias": 0,
    "attention.wv.weight": 0,
    "attention.wv.bias": 0,
    "attention.wo.weight": 1,
    "feed_forward.w1.weight": 0,
    "feed_forward.w3.weight": 0,
    "feed_forward.w2.weight": 1,
    "attention_norm.weight": None,
    "ffn_norm.weight": None,
    "norm_out.weight": None,
    "lm_head.weight": 0,
}
# Sizes that every tp rank takes an equal share of.
_TP_SIZES = ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class ParamLayout:
    """One row of the table, filled in for one model: `split_dim` is cut over tp; `stage` owns it."""

    name: str
    shape: tuple[int, ...]
    split_dim: int | None
    stage: int


class ModelLayout(StageLayouts):
    """The layout of one model on one mesh.

    Layers go to the stages in order and evenly, what remains to the first stages, unless `stage_layers` gives
    the number for each stage. A tied embedding lives on the first stage alone: MindSpore sends it to the last one in
    every step, and its gradient back.

    With `opt_shard`, dim 0 of what a rank holds is split once more among the ranks of its stage that hold the
    same part, where their number divides it. These are dp ranks for a tensor that tp splits, dp × tp ranks for
    one that it does not: MindSpore's own rule. What is sent to another stage is not split like this: MindSpore cannot.

    `layout_from_config` makes it from a run's configuration.

    Raises:
        UserError: tp does not divide a size of the model.
        ValueError: there are more stages than layers, or `stage_layers` does not add up.
    """

    config: ModelConfig
    mesh: Mesh
    opt_shard: bool
    stage_layers: tuple[int, ...]
    parameters: dict[str, ParamLayout]

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        opt_shard: bool = False,
        stage_layers: tuple[int, ...] | None = None,
        tied_copy: bool = False,
    ) -> None:
        check_model_parallel(config, mesh.tp)
        layers = even_stages(config.num_layers, mesh.pp) if stage_layers is None else stage_layers
        _check_stages(config.num_layers, mesh.pp, layers)
        parameters = _parameters(config, mesh.pp, layers)
        sent = {"model.tok_embeddings.embedding_weight"} if config.tie_word_embeddings and mesh.pp > 1 else set()
        stages = tuple(
            {
                name: _tensor_layout(param, mesh, opt_shard and name not in sent)
                for name, param in parameters.items()
                if param.stage == stage or (tied_copy and name in sent and stage == mesh.pp - 1)
            }
            for stage in range(mesh.pp)
        )
        super().__init__(mesh.stage_size, stages)
        own = {"config": config, "mesh": mesh, "opt_shard": opt_shard, "stage_layers": layers, "parameters": parameters}
        for attribute, value in own.items():
            object.__setattr__(self, attribute, value)  # the base class is frozen

    def slices(self, name: str, rank: int) -> Region | None:
        """The part of a parameter that `rank` holds; None where its stage does not own it."""
        return self.cut(name, self.parameters[name].shape, rank)

    def copies(self, name: str) -> int:
        """How many ranks hold each part of a parameter."""
        layouts = [layout for _, layout in self.owners(name)]
        return len(layouts) // prod(layouts[0].parts)

    def local_shape(self, name: str, rank: int) -> tuple[int, ...] | None:
        """Shape of the part of a parameter that `rank` holds; None where its stage does not own it."""
        slices = self.slices(name, rank)
        return None if slices is None else shape_of(slices)


def split_dim(name: str) -> int | None:
    """The dim of a parameter that tp splits, or None.

    Raises:
        KeyError: the table has no such parameter.
    """
    for suffix, dim in SPLIT_DIMS.items():
        if name == suffix or name.endswith("." + suffix):
            return dim
    raise KeyError(name)


def _parameters(config: ModelConfig, pp: int, layers: tuple[int, ...]) -> dict[str, ParamLayout]:
    stage_of_layer = [stage for stage, count in enumerate(layers) for _ in range(count)]
    result = {}
    for name, shape in config.parameter_shapes().items():
        if name.startswith("model.layers."):
            stage = stage_of_layer[int(name.split(".")[2])]
        else:
            stage = 0 if "tok_embeddings" in name else pp - 1
        result[name] = ParamLayout(name, shape, split_dim(name), stage)
    return result


def _tensor_layout(param: ParamLayout, mesh: Mesh, opt_shard: bool) -> TensorLayout:
    """One row of a strategy file. MindSpore leaves axes of size 1 out of the device matrix; so does this."""
    dev_matrix = tuple(size for size in (mesh.dp, mesh.tp) if size > 1) or (1,)
    split = param.split_dim if mesh.tp > 1 else None
    tensor_map = tuple(0 if dim == split else -1 for dim in range(len(param.shape)))
    replicas = mesh.stage_size if split is None else mesh.dp
    rows = param.shape[0] // mesh.tp if split == 0 else param.shape[0]
    if not opt_shard or replicas == 1 or rows % replicas:
        return TensorLayout(dev_matrix, tensor_map)
    return TensorLayout(dev_matrix, tensor_map, 1 if split is None else mesh.tp, -1)


def check_model_parallel(config: ModelConfig, tp: int, key: str = "model_parallel") -> None:
    """Refuse a tp that does not divide the model's heads, key heads, inner size and vocabulary.

    Raises:
        UserError: it names `key`, what is not divided, and the values that work.
    """
    sizes = {name: getattr(config, name) for name in _TP_SIZES}
    uneven = [f"{name} {size}" for name, size in sizes.items() if size % tp]
    if uneven:
        works = [str(n) for n in range(1, config.num_kv_heads + 1) if not any(size % n for size in sizes.values())]
        raise UserError(
            f"{key} is {tp}, which does not divide the model's {', '.join(uneven)}; {', '.join(works)} would do"
        )


def _check_stages(num_layers: int, pp: int, layers: tuple[int, ...]) -> None:
    if len(layers) != pp or min(layers) < 1 or sum(layers) != num_layers:
        raise ValueError(f"stage_layers {list(layers)} must be {pp} numbers of at least 1 that sum to {num_layers}")
