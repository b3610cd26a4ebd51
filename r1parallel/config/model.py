"""Sizes of a Qwen2.5 model, from our model.yaml, a Hugging Face config.json or a mindformers YAML."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from r1parallel.atomic import replacing
from r1parallel.errors import UserError

# Hugging Face key → ours. Keys of config.json that are not here do not change the computation.
_HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
}
# mindformers' key in model.model_config → ours; "" is only checked. LlamaConfig and Qwen2Config name some differently.
MINDFORMERS_SIZES = {
    "type": "",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "num_key_value_heads": "num_kv_heads",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
    "theta": "rope_theta",
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "max_position_embeddings": "max_position_embeddings",
    "max_position_embedding": "max_position_embeddings",
    "tie_word_embeddings": "tie_word_embeddings",
    "qkv_has_bias": "",
    "hidden_act": "",
    "extend_method": "",
    "scaling_factor": "",
    "emb_dropout_prob": "",
    "attention_dropout": "",
    "hidden_dropout": "",
    "rotary_pct": "",
    "multiple_of": "",
    "ffn_dim_multiplier": "",
}
# What the computation relies on, and the values that say so.
_MINDFORMERS_NEEDED: dict[str, tuple[object, ...]] = {
    "type": ("LlamaConfig", "Qwen2Config"),
    "qkv_has_bias": (True,),
    "hidden_act": ("silu",),
    "extend_method": ("None", None),
    "scaling_factor": (1, 1.0),
    "emb_dropout_prob": (0, 0.0),
    "attention_dropout": (0, 0.0),
    "hidden_dropout": (0, 0.0),
    "rotary_pct": (1, 1.0),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model. `vocab_size` counts the rows of the embedding, padding included."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1000000.0
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"model: {name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_heads:
            raise UserError(f"model: hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"model: num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model: head size {self.head_dim} is odd; rotary embedding needs an even one")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_size(self) -> int:
        """Width of all key heads together."""
        return self.num_kv_heads * self.head_dim

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every parameter, in mindformers' names and Hugging Face's [out, in] order."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.embedding_weight": (self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            for part, size in (("wq", hidden), ("wk", self.kv_size), ("wv", self.kv_size)):
                shapes[f"{prefix}attention.{part}.weight"] = (size, hidden)
                shapes[f"{prefix}attention.{part}.bias"] = (size,)
            shapes[f"{prefix}attention.wo.weight"] = (hidden, hidden)
            shapes[f"{prefix}feed_forward.w1.weight"] = (inner, hidden)
            shapes[f"{prefix}feed_forward.w2.weight"] = (hidden, inner)
            shapes[f"{prefix}feed_forward.w3.weight"] = (inner, hidden)
            shapes[f"{prefix}attention_norm.weight"] = (hidden,)
            shapes[f"{prefix}ffn_norm.weight"] = (hidden,)
        shapes["model.norm_out.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def to_hf(self) -> dict[str, object]:
        """The same sizes as a Hugging Face config.json."""
        ours = asdict(self)
        sizes: dict[str, object] = {hf: ours[key] for hf, key in _HF_KEYS.items()}
        return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", **sizes}


def load_model_config(path: str | Path) -> ModelConfig:
    """Read a model.yaml of ours, a config.json, a mindformers YAML, or a folder that holds one of the first two.

    Raises:
        UserError: the file is missing, is no Qwen2 model, or lacks or adds a key.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json" if (path / "config.json").exists() else path / "model.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such model configuration; give a model.yaml or a Hugging Face config.json")
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not readable as YAML or JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values")
    if path.suffix == ".json":
        return _from_hf(raw, path)
    return _from_mindformers(raw, path) if "model" in raw else _from_ours(raw, path)


def _from_ours(raw: dict, path: Path) -> ModelConfig:
    known = {f.name: f for f in fields(ModelConfig)}
    for key in raw:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}; known: {', '.join(known)}")
    return _build(raw, path)


def _from_hf(raw: dict, path: Path) -> ModelConfig:
    if raw.get("model_type") != "qwen2":
        raise UserError(f"{path}: model_type is {raw.get('model_type')!r}; only 'qwen2' (Qwen2, Qwen2.5) is supported")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path}: hidden_act is {raw['hidden_act']!r}; only 'silu' is supported")
    if raw.get("use_sliding_window"):
        raise UserError(f"{path}: use_sliding_window is on; sliding-window attention is not supported")
    if raw.get("rope_scaling"):
        raise UserError(f"{path}: rope_scaling is set; scaled rotary embeddings are not supported")
    raw = {"num_key_value_heads": raw.get("num_attention_heads"), **raw}
    rope = raw.get("rope_parameters")  # where transformers 5 keeps the base
    if isinstance(rope, dict) and "rope_theta" in rope:
        raw = {"rope_theta": rope["rope_theta"], **raw}
    raw = {"rope_theta": 10000.0, **raw}  # what transformers assumes where the file is silent
    return _build({ours: raw[hf] for hf, ours in _HF_KEYS.items() if hf in raw}, path)


def _from_mindformers(raw: dict, path: Path) -> ModelConfig:
    """The rest of such a file is read by `model_files`."""
    model = raw["model"].get("model_config") if isinstance(raw["model"], dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{path}: model holds no model_config with the sizes")
    if model.get("type") == "LlamaConfig":  # whose default is off; Qwen2Config has biases always
        model = {"qkv_has_bias": False, **model}
    for key, known in _MINDFORMERS_NEEDED.items():
        if key in model and model[key] not in known:
            raise UserError(f"{path}: model.model_config.{key} is {model[key]!r}; only {known[0]!r} is supported")
    sizes: dict[str, object] = {}
    for key, ours in MINDFORMERS_SIZES.items():
        if not ours or model.get(key) is None:
            continue
        if sizes.setdefault(ours, model[key]) != model[key]:
            raise UserError(f"{path}: model.model_config.{key} is {model[key]!r}, but another key says {sizes[ours]!r}")
    heads = {"num_kv_heads": model["num_heads"]} if "num_heads" in model else {}
    return _build({"rope_theta": 10000.0, **heads, **sizes}, path)  # mindformers' defaults where the file is silent


def _build(values: dict, path: Path) -> ModelConfig:
    kinds = {f.name: f.type for f in fields(ModelConfig)}
    for key, value in values.items():
        if kinds[key] in (float, "float") and isinstance(value, int | float) and not isinstance(value, bool):
            values = {**values, key: float(value)}
        elif type(value).__name__ != getattr(kinds[key], "__name__", kinds[key]):
            raise UserError(f"{path}: {key} is {value!r}; expected {getattr(kinds[key], '__name__', kinds[key])}")
    try:
        return ModelConfig(**values)
    except TypeError as error:
        raise UserError(f"{path}: {str(error).split('__init__() ')[-1]}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_model_config(
    config: ModelConfig, path: str | Path, dtype: str = "float32", **token_ids: int | list[int]
) -> None:
    """Write a Hugging Face config.json; `token_ids` are bos_token_id, eos_token_id and the like."""
    values = {**config.to_hf(), "torch_dtype": dtype, **token_ids}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
