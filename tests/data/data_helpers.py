import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
CHAT_TEMPLATE = (
    "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write_config(folder: Path, **changes) -> None:
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>", "special": True},
        "chat_template": CHAT_TEMPLATE,
    }
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def tool_main(name: str) -> Callable[[list[str]], None]:
    """The `main` of tools/<name>.py."""
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main
