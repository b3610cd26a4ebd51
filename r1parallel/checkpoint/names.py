"""The one table of parameter names: Hugging Face's Qwen2 on the left, ours (mindformers') on the right."""

import re

from r1parallel.errors import UserError

NAME_TABLE: tuple[tuple[str, str], ...] = (
    ("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight"),
    ("model.layers.{layer}.self_attn.q_proj.weight", "model.layers.{layer}.attention.wq.weight"),
    ("model.layers.{layer}.self_attn.q_proj.bias", "model.layers.{layer}.attention.wq.bias"),
    ("model.layers.{layer}.self_attn.k_proj.weight", "model.layers.{layer}.attention.wk.weight"),
    ("model.layers.{layer}.self_attn.k_proj.bias", "model.layers.{layer}.attention.wk.bias"),
    ("model.layers.{layer}.self_attn.v_proj.weight", "model.layers.{layer}.attention.wv.weight"),
    ("model.layers.{layer}.self_attn.v_proj.bias", "model.layers.{layer}.attention.wv.bias"),
    ("model.layers.{layer}.self_attn.o_proj.weight", "model.layers.{layer}.attention.wo.weight"),
    ("model.layers.{layer}.mlp.gate_proj.weight", "model.layers.{layer}.feed_forward.w1.weight"),
    ("model.layers.{layer}.mlp.down_proj.weight", "model.layers.{layer}.feed_forward.w2.weight"),
    ("model.layers.{layer}.mlp.up_proj.weight", "model.layers.{layer}.feed_forward.w3.weight"),
    ("model.layers.{layer}.input_layernorm.weight", "model.layers.{layer}.attention_norm.weight"),
    ("model.layers.{layer}.post_attention_layernorm.weight", "model.layers.{layer}.ffn_norm.weight"),
    ("model.norm.weight", "model.norm_out.weight"),
    ("lm_head.weight", "lm_head.weight"),
)
_FROM_HF = dict(NAME_TABLE)
_TO_HF = {ours: hf for hf, ours in NAME_TABLE}
_LAYER = re.compile(r"(?<=^model\.layers\.)(0|[1-9][0-9]*)(?=\.)")


def from_hf(name: str) -> str:
    """Our name of a Hugging Face parameter.

    Raises:
        UserError: Qwen2 has no such parameter.
    """
    return _translate(name, _FROM_HF, "Hugging Face Qwen2")


def to_hf(name: str) -> str:
    """Hugging Face's name of a parameter of ours.

    Raises:
        UserError: our model has no such parameter.
    """
    return _translate(name, _TO_HF, "r1parallel (mindformers)")


def _translate(name: str, table: dict[str, str], family: str) -> str:
    layer = _LAYER.search(name)
    key = _LAYER.sub("{layer}", name)
    if key not in table or "{" in name:
        raise UserError(f"{name}: no {family} parameter has this name; see the table in docs/checkpoints.md")
    return table[key].replace("{layer}", layer[0]) if layer else table[key]
