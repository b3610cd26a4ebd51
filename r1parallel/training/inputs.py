"""What every training run starts from: sizes, tokenizer and rows that belong together."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.data.mindrecord import DatasetRows, read_mindrecord
from r1parallel.data.text.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.parallel.device import has_fused_kernels


@dataclass
class Inputs:
    """Sizes of the model, its tokenizer, and the rows of the data set."""

    model: ModelConfig
    tokenizer: Tokenizer
    rows: DatasetRows


def load_inputs(model_config: str, tokenizer_dir: str, dataset_file: str) -> Inputs:
    """Load the three and check them against each other.

    Raises:
        UserError: one is missing or damaged, or tokenizer or rows hold ids that the embedding has no row for.
    """
    model, tokenizer = load_model_config(model_config), load_tokenizer(tokenizer_dir)
    check_tokenizer(tokenizer, model, tokenizer_dir)
    return Inputs(model, tokenizer, load_rows(dataset_file, model))


def load_rows(dataset_file: str, model: ModelConfig) -> DatasetRows:
    """Read a data set for this model.

    Raises:
        UserError: it is missing or damaged, or holds ids that the embedding has no row for.
    """
    rows = read_mindrecord(dataset_file)
    largest = max(int(rows.prompt_ids.max()), int(rows.answer_ids.max(initial=0)))
    if largest >= model.vocab_size:
        raise UserError(
            f"{dataset_file}: holds token id {largest}, the model's embedding has {model.vocab_size} rows; "
            "was it prepared with this model's tokenizer?"
        )
    return rows


def graph_parts(config: RunConfig, task: str, sections: Sequence[str], own: str, inputs: Inputs) -> list[object]:
    """What decides the graphs of a run, and more: one key too many costs a compilation, one too few spoils the run.

    Args:
        config: of the run.
        task: name of the kind of training.
        sections: of the configuration, that the task uses.
        own: the one among them that says where the run's folder is and whether it is resumed, which decides no graph.
        inputs: model and data.
    """
    settings = {name: section for name, section in asdict(config).items() if name in sections}
    for key in ("output_dir", "resume_training"):
        del settings[own][key]
    return [task, settings, inputs.model, fingerprint(inputs.rows), has_fused_kernels()]


def fingerprint(rows: DatasetRows) -> str:
    """What tells one data set from another, as "32 rows, sha256 0123456789ab"."""
    digest = hashlib.sha256(repr(rows.solutions).encode())
    for array in (rows.prompt_ids, rows.prompt_lengths, rows.answer_ids, rows.answer_lengths):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return f"{len(rows.solutions)} rows, sha256 {digest.hexdigest()[:12]}"
