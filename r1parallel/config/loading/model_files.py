"""mindformers files, given as `model_config` of a model or as `--config` of a training command."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from r1parallel.config.foreign.key_translation import Given, shown
from r1parallel.config.foreign.mindformers import KEYS, SIZES
from r1parallel.config.keys import Key
from r1parallel.config.loading.yaml_file import Dialect, YamlFile
from r1parallel.config.model import load_model_config
from r1parallel.errors import UserError

_MARKS = {"model", "trainer", "runner_config"}  # top-level keys that only mindformers' files have


def is_mindformers(file: YamlFile) -> bool:
    """Whether a YAML file is written for mindformers."""
    return not _MARKS.isdisjoint(file.names())


def read_mindformers(
    file: YamlFile,
    known: Mapping[str, Key],
    sections: Sequence[str],
    places: Mapping[str, str],
    stronger: Collection[str] = (),
) -> Given:
    """All keys of a mindformers file but the sizes of its model.

    Args:
        file: the file.
        known: keys of the command.
        sections: sections of the command.
        places: which of our sections its model, its run and its host are, as far as it speaks for them.
        stronger: see `Given`.

    Raises:
        UserError: a key that is unknown or a value that has no counterpart.

    """
    return file.read(Dialect({}, KEYS, known, sections, places, SIZES), stronger)


def read_model_file(
    section: str, path: Path, known: Mapping[str, Key], sections: Sequence[str], run: Collection[str]
) -> Given:
    """What the file of one model says beside its sizes, if it is mindformers' and exists.

    Where the run's own file has a part of a section, such as parallel_config, all of it is the run's, as in mindrlhf.

    Args:
        section: actor_config, ref_config or generate_config.
        path: the file.
        known: keys of the command.
        sections: sections of the command.
        run: dotted keys that the run's own file gives.

    Raises:
        UserError: a key that is unknown or a value that has no counterpart.

    """
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return Given()
    file = YamlFile(path)
    if not is_mindformers(file):
        return Given()
    places = {"model": section}
    if section == "actor_config":
        places |= {"host": "context"} | ({"train": section} if "sft_config" in sections else {})
    stronger = {*run, *(key.rpartition(".")[0] for key in run if key.count(".") > 1)}
    given = read_mindformers(file, known, sections, places, stronger)
    given.notes = [f"{path.name}: {note}" for note in given.notes]
    return given


def check_same_sizes(actor: str, others: Mapping[str, str]) -> None:
    """Check that the files of the other models describe the actor's model; files that are missing are left to others.

    Args:
        actor: the actor's file.
        others: section → file.

    Raises:
        UserError: a size differs.

    """
    if not actor or not Path(actor).exists():
        return
    for section, path in others.items():
        if not path or Path(path) == Path(actor) or not Path(path).exists():
            continue
        sizes = vars(load_model_config(actor))
        for name, value in vars(load_model_config(path)).items():
            if value != sizes[name] and name != "max_position_embeddings":
                raise UserError(
                    f"{section}.model_config {path}: {name} is {shown(value)}, but the actor's is {shown(sizes[name])} "
                    f"({actor}); every model of a run has the same sizes"
                )
