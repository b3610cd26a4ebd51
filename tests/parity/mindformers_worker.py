"""Ask mindformers for names, parameters and conversions; it sets up a whole process and writes a log into its folder.

python mindformers_worker.py FOLDER: FOLDER/names.json lists Hugging Face's names, FOLDER/models/*/hf are small Qwen2
models. Leaves FOLDER/answers.json, and beside each `hf` the folders `plain` and `concatenated`; of the model `pairs`
also the logits of both.
"""

import json
import sys
from pathlib import Path

import mindspore
import numpy as np
from mindformers.core.context.build_context import build_mf_context
from mindformers.models.llama.convert_weight import name_replace
from mindformers.models.llama.llama import LlamaForCausalLM
from mindformers.models.llama.llama_config import LlamaConfig
from mindformers.models.qwen2.utils import Qwen2PreTrainedModel
from mindformers.utils.convert_utils import ffn_concat_hf2mg, qkv_concat_hf2mg
from mindformers.utils.safetensors.convert_safetensors import convert_hf_safetensors_multiprocess
from safetensors.numpy import load_file, save_file


def llama_config(hf: dict, concatenated: bool) -> LlamaConfig:
    """Their llama with Qwen2.5's biases, in the sizes of a config.json."""
    return LlamaConfig(
        seq_length=8,
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        n_kv_heads=hf["num_key_value_heads"],
        tie_word_embeddings=hf["tie_word_embeddings"],
        qkv_has_bias=True,
        qkv_concat=concatenated,
        use_flash_attention=False,
        fused_rms_norm=False,
        compute_dtype="float32",
        rotary_dtype="float32",
        pad_token_id=0,
    )


def convert(model: Path) -> dict[str, dict[str, list[int]]]:
    """Convert `hf` as their online loader does; the parameters of their models: kind → name → shape."""
    sizes = json.loads((model / "hf" / "config.json").read_text())
    parameters = {}
    for kind in ("plain", "concatenated"):
        config = llama_config(sizes, kind == "concatenated")
        convert_hf_safetensors_multiprocess(str(model / "hf"), str(model / kind), LlamaForCausalLM, config)
        parameters[kind] = {p.name: list(p.shape) for p in LlamaForCausalLM(config).get_parameters()}
    return parameters


class Swap(mindspore.nn.Cell):
    """Their product with a matrix for all heads; the CPU's operator wants one for each."""

    def construct(self, x, matrix):
        return mindspore.ops.matmul(x, matrix)


def logits(model: Path, kind: str) -> np.ndarray:
    """What their model makes of some tokens with the tensors in folder `kind`."""
    config = llama_config(json.loads((model / "hf" / "config.json").read_text()), kind == "concatenated")
    network = LlamaForCausalLM(config)
    network.set_train(False)
    for layer in network.model.layers:
        layer.attention.apply_rotary_emb.bmm_swap = Swap()
    values = load_file(model / kind / "model.safetensors")
    for parameter in network.get_parameters():
        parameter.set_data(mindspore.Tensor(values[parameter.name], parameter.dtype))
    tokens = mindspore.Tensor(np.arange(1, 1 + config.seq_length, dtype=np.int32)[None])
    return network(tokens)[0].astype(mindspore.float32).asnumpy()


def call_functions(folder: Path) -> None:
    """What the two functions make of the plainly joined tensors in joined.safetensors."""
    sizes = json.loads((folder / "hf" / "config.json").read_text())
    joined = load_file(folder / "joined.safetensors")
    heads = (sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["hidden_size"])
    results = {name: qkv_concat_hf2mg(joined[name], *heads) for name in ("qkv.weight", "qkv.bias")}
    results["gate_up.weight"] = ffn_concat_hf2mg(joined["gate_up.weight"], sizes["intermediate_size"])
    save_file(results, folder / "functions.safetensors")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    mindspore.set_context(device_target="CPU")
    names = json.loads((target / "names.json").read_text())
    models = sorted((target / "models").iterdir())
    answers = {
        "ours": {name: LlamaForCausalLM.convert_name(name) for name in names},
        "offline": {name: name_replace(name) for name in names},
        "parameters": {model.name: convert(model) for model in models},
    }
    for model in models:
        call_functions(model)
    both = {kind: logits(target / "models" / "pairs", kind) for kind in ("plain", "concatenated")}
    save_file(both, target / "logits.safetensors")
    # The mcore models refuse to work beside the llama ones.
    build_mf_context({"use_legacy": False, "run_mode": "predict", "context": {}, "parallel": {}})
    mcore = Qwen2PreTrainedModel.__new__(Qwen2PreTrainedModel)  # only its table of names is asked
    answers["mcore"] = {name: mcore.convert_name(name) for name in names}
    # Their loaders take a folder for Hugging Face's as soon as this changes a single name in it.
    ours = [name for kinds in answers["parameters"].values() for parameters in kinds.values() for name in parameters]
    answers["ours again"] = {name: LlamaForCausalLM.convert_name(name) for name in ours}
    answers["mcore again"] = {name: mcore.convert_name(name) for name in answers["mcore"].values()}
    (target / "answers.json").write_text(json.dumps(answers))
