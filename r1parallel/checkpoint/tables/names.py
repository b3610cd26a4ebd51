"""The one table of parameter names: Hugging Face's Qwen2, ours (mindformers' llama), and mindformers' mcore models."""

import re
from collections.abc import Iterable

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError

FAMILIES = ("hf", "ours", "mcore")
EMBEDDING, HEAD = "model.tok_embeddings.embedding_weight", "lm_head.weight"
ROTARY_BUFFER = "rotary_emb.inv_freq"  # old checkpoints store it; it follows from the sizes

# One column for each of FAMILIES. The first row is the embedding, whose name tells the families apart.
NAME_TABLE: tuple[tuple[str, str, str], ...] = (
    (
        "model.embed_tokens.weight",
        "model.tok_embeddings.embedding_weight",
        "embedding.word_embeddings.weight",
    ),
    (
        "model.layers.{layer}.self_attn.q_proj.weight",
        "model.layers.{layer}.attention.wq.weight",
        "decoder.layers.{layer}.self_attention.linear_q.weight",
    ),
    (
        "model.layers.{layer}.self_attn.q_proj.bias",
        "model.layers.{layer}.attention.wq.bias",
        "decoder.layers.{layer}.self_attention.linear_q.bias",
    ),
    (
        "model.layers.{layer}.self_attn.k_proj.weight",
        "model.layers.{layer}.attention.wk.weight",
        "decoder.layers.{layer}.self_attention.linear_k.weight",
    ),
    (
        "model.layers.{layer}.self_attn.k_proj.bias",
        "model.layers.{layer}.attention.wk.bias",
        "decoder.layers.{layer}.self_attention.linear_k.bias",
    ),
    (
        "model.layers.{layer}.self_attn.v_proj.weight",
        "model.layers.{layer}.attention.wv.weight",
        "decoder.layers.{layer}.self_attention.linear_v.weight",
    ),
    (
        "model.layers.{layer}.self_attn.v_proj.bias",
        "model.layers.{layer}.attention.wv.bias",
        "decoder.layers.{layer}.self_attention.linear_v.bias",
    ),
    (
        "model.layers.{layer}.self_attn.o_proj.weight",
        "model.layers.{layer}.attention.wo.weight",
        "decoder.layers.{layer}.self_attention.linear_proj.weight",
    ),
    (
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.feed_forward.w1.weight",
        "decoder.layers.{layer}.mlp.gating.weight",
    ),
    (
        "model.layers.{layer}.mlp.down_proj.weight",
        "model.layers.{layer}.feed_forward.w2.weight",
        "decoder.layers.{layer}.mlp.linear_fc2.weight",
    ),
    (
        "model.layers.{layer}.mlp.up_proj.weight",
        "model.layers.{layer}.feed_forward.w3.weight",
        "decoder.layers.{layer}.mlp.hidden.weight",
    ),
    (
        "model.layers.{layer}.input_layernorm.weight",
        "model.layers.{layer}.attention_norm.weight",
        "decoder.layers.{layer}.input_layernorm.weight",
    ),
    (
        "model.layers.{layer}.post_attention_layernorm.weight",
        "model.layers.{layer}.ffn_norm.weight",
        "decoder.layers.{layer}.pre_mlp_layernorm.weight",
    ),
    ("model.norm.weight", "model.norm_out.weight", "decoder.final_layernorm.weight"),
    ("lm_head.weight", "lm_head.weight", "output_layer.weight"),
)

# mindformers' qkv_concat: which of our tensors, weights and biases alike, lie in one. Their rows alternate in groups,
# see `group_rows`, so that an equal cut over tp gives each rank whole heads.
CONCATENATED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention.w_qkv", ("attention.wq", "attention.wk", "attention.wv")),
    ("feed_forward.w_gate_hidden", ("feed_forward.w1", "feed_forward.w3")),
)

_TITLES = {"hf": "Hugging Face Qwen2", "ours": "r1parallel (mindformers)", "mcore": "mindformers mcore Qwen2"}
_ROWS = {family: {row[column]: row for row in NAME_TABLE} for column, family in enumerate(FAMILIES)}
_LAYER = re.compile(r"(?<=\.layers\.)(0|[1-9][0-9]*)(?=\.)")
_MERGED_OF = {part: (merged, index) for merged, parts in CONCATENATED for index, part in enumerate(parts)}
_PARTS_OF = dict(CONCATENATED)
# "model.layers.0." · "attention.wq" · ".weight"
_INSIDE_LAYER = re.compile(r"(.*\.layers\.[0-9]+\.)(\w+\.\w+)(\.\w+)")


def from_hf(name: str) -> str:
    """Our name of a Hugging Face parameter.

    Raises:
        UserError: Qwen2 has no such parameter.
    """
    return translate(name, "hf", "ours")


def to_hf(name: str) -> str:
    """Hugging Face's name of a parameter of ours.

    Raises:
        UserError: our model has no such parameter.
    """
    return translate(name, "ours", "hf")


def translate(name: str, source: str, target: str) -> str:
    """The name in family `target` of what `source` calls `name`; both are of `FAMILIES`.

    Raises:
        UserError: family `source` has no such parameter.
    """
    layer = _LAYER.search(name)
    key = _LAYER.sub("{layer}", name, count=1)
    if key not in _ROWS[source] or "{" in name:
        raise UserError(f"{name}: no {_TITLES[source]} parameter has this name; see the table in docs/checkpoints.md")
    translated = _ROWS[source][key][FAMILIES.index(target)]
    return translated.replace("{layer}", layer[0]) if layer else translated


def family_of(names: Iterable[str]) -> str:
    """The family of a whole checkpoint's names; its embedding decides.

    Raises:
        UserError: no family's embedding is among them, or that of several.
    """
    present = set(names)
    found = [family for family, embedding in zip(FAMILIES, NAME_TABLE[0], strict=True) if embedding in present]
    if not found:
        raise UserError(f"no embedding among the tensors, neither {', nor '.join(NAME_TABLE[0])}; give a Qwen2 model")
    if len(found) > 1:
        titles = " and ".join(_TITLES[family] for family in found)
        raise UserError(f"embeddings of {titles} side by side; keep the names of one model only")
    return found[0]


def concatenated_tensors(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Our names → the tensors of a concatenated checkpoint, each with the names that make it up, in order.

    The order of `names` is kept; a concatenated tensor stands where the first of its parts stood.

    Raises:
        UserError: a part of a concatenated tensor is not among the names.
    """
    given = dict.fromkeys(names)
    tensors: dict[str, tuple[str, ...]] = {}
    for name in given:
        found = _INSIDE_LAYER.fullmatch(name)
        if found is None or found[2] not in _MERGED_OF:
            tensors[name] = (name,)
            continue
        merged = _MERGED_OF[found[2]][0]
        parts = tuple(f"{found[1]}{part}{found[3]}" for part in _PARTS_OF[merged])
        for part in parts:
            if part not in given:
                raise UserError(f"{part}: is missing beside {name}, with which it is concatenated")
        tensors[f"{found[1]}{merged}{found[3]}"] = parts
    return tensors


def separate_tensors(stored: Iterable[str]) -> dict[str, tuple[str, int | None]]:
    """Our names → the stored tensor that holds each, and which part of it; None where it is all of it.

    The order of `stored` is kept; the parts of a concatenated tensor stand in its place.

    Raises:
        UserError: a tensor is stored twice, on its own and in a concatenated one.
    """
    held: dict[str, tuple[str, int | None]] = {}
    for name in stored:
        found = _INSIDE_LAYER.fullmatch(name)
        places: dict[str, tuple[str, int | None]] = {name: (name, None)}
        if found is not None and found[2] in _PARTS_OF:
            parts = _PARTS_OF[found[2]]
            places = {f"{found[1]}{part}{found[3]}": (name, index) for index, part in enumerate(parts)}
        for part in places:
            if part in held:
                raise UserError(f"{part}: is stored twice, in {held[part][0]} and in {name}; keep one of them")
        held |= places
    return held


def group_rows(config: ModelConfig, concatenated: str) -> tuple[int, ...]:
    """TensorRows of each part in one group of a concatenated tensor, weight or bias; all of it is such groups in order.

    For `attention.w_qkv` a group is a key head with its query heads, for `feed_forward.w_gate_hidden` an inner unit.

    Args:
        config: the model.
        concatenated: a name in `concatenated_tensors`, as `model.layers.0.attention.w_qkv.weight`.
    """
    found = _INSIDE_LAYER.fullmatch(concatenated)
    if found is None or found[2] not in _PARTS_OF:
        raise ValueError(f"{concatenated} is no concatenated tensor")
    queries = config.num_heads // config.num_kv_heads * config.head_dim
    rows = {"attention.w_qkv": (queries, config.head_dim, config.head_dim), "feed_forward.w_gate_hidden": (1, 1)}
    return rows[found[2]]
