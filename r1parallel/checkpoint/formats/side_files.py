"""The files beside the weights: config.json and the tokenizer's, which every copy of a checkpoint keeps."""

import json
import shutil
from pathlib import Path
from typing import Any

from r1parallel.atomic import replacing
from r1parallel.checkpoint.formats.dtypes import CONFIG_DTYPES
from r1parallel.config.model import load_model_config

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_side_files(src: Path, dst: Path) -> None:
    """Copy config.json and the tokenizer's files, those that are there, from one folder into another."""
    for name in (CONFIG_FILE, *TOKENIZER_FILES):
        if (src / name).is_file():
            with replacing(dst / name) as temporary:
                shutil.copyfile(src / name, temporary)


def read_config(path: Path) -> dict[str, Any]:
    """A config.json, given itself or by its folder; or what it would be where there is a model.yaml only.

    Raises:
        UserError: there is neither, or it does not describe a Qwen2 model.
    """
    sizes = load_model_config(path).to_hf()
    file = path / CONFIG_FILE if path.is_dir() else path
    if file.suffix != ".json" or not file.is_file():
        return sizes
    return dict(json.loads(file.read_text(encoding="utf-8")))


def write_config(config: dict[str, Any], folder: Path, dtypes: set[str]) -> None:
    """Write the config.json of a checkpoint whose weights are stored in `dtypes` (header names).

    `torch_dtype` (and `dtype`, as newer transformers call it) become the weights' type, where they have only one.
    """
    if len(dtypes) == 1:
        torch_dtype = CONFIG_DTYPES[next(iter(dtypes))]
        config = {**config, "torch_dtype": torch_dtype, **({"dtype": torch_dtype} if "dtype" in config else {})}
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
