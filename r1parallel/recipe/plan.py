"""From a recipe's YAML to the stages to run, everything checked that can be before the first one runs."""

import argparse
from pathlib import Path
from typing import Any

from r1parallel.checkpoint.command_line import add_convert_flags, add_output_flags, convert_target
from r1parallel.checkpoint.load import open_model
from r1parallel.data.flags import SEQ_LENGTH, add_preprocess_flags, add_problem_flags
from r1parallel.data.templates import PROMPT_TYPES, render
from r1parallel.data.text.sources import ExampleSource
from r1parallel.data.text.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from r1parallel.errors import UserError
from r1parallel.generation.flags import add_evaluate_flags, read_evaluate_flags
from r1parallel.recipe.flags import ToolFlags
from r1parallel.recipe.section import Section, read_sections
from r1parallel.recipe.stage import Plan, Stage
from r1parallel.recipe.training import KINDS, Training, plan_training

_KEYS = (
    *("output_dir", "worker_num", "stage_limit", "base", "tokenizer_dir"),
    *("problems", "data", "sft", "grpo", "export", "evaluate"),
)
_DATA = ("sft", "sft_eval", "grpo")
_DAY_S = 86400.0


def plan_recipe(path: Path, output_dir: str | None) -> Plan:
    """Read a recipe; `output_dir` is stronger than the recipe's.

    Raises:
        UserError: an unknown key, a value that a stage would refuse, a file that is missing.
    """
    recipe = read_sections(path)
    recipe.refuse_unknown(_KEYS)
    plan = Plan(Path(output_dir or recipe.need("output_dir")), recipe.take("stage_limit", _DAY_S))
    if plan.limit_s <= 0:
        raise recipe.error("stage_limit", f"is {plan.limit_s:g} seconds; it must be above 0")
    _Planner(recipe, plan).add_stages()
    return plan


class _Planner:
    """Adds the stages of a recipe to its plan."""

    def __init__(self, recipe: Section, plan: Plan) -> None:
        self.recipe, self.plan, self.out = recipe, plan, plan.output
        self.base, self.workers = recipe.take("base", ""), recipe.take("worker_num", 1)
        if self.workers < 1:
            raise recipe.error("worker_num", f"is {self.workers}; it must be at least 1")
        if self.base and not Path(self.base).exists():
            raise recipe.error("base", f"{self.base}: no such checkpoint")
        self.problems = recipe.section("problems").sections() if "problems" in recipe.values else {}
        self.tokenizer_dir = recipe.take("tokenizer_dir", self.base)
        self.tokenizer: Tokenizer | None = None
        self.makes_tokenizer = not self.tokenizer_dir
        if self.makes_tokenizer:
            self.tokenizer_dir = str(self.out / "data" / "tokenizer")
        else:
            self.tokenizer = self._load_tokenizer()

    def add_stages(self) -> None:
        for name, section in self.problems.items():
            self._add_problems(name, section)
        if self.makes_tokenizer:
            raise self.recipe.error("tokenizer_dir", "is missing; only arithmetic problems come with a tokenizer")
        data = {name: self._add_data(name) for name in _DATA if name in self._data_sections()}
        names = [name for name in KINDS if name in self.recipe.values]
        if not names:
            raise self.recipe.error("grpo", "is missing, and so is sft; a recipe trains something")
        model = self.base
        needs: tuple[str, ...] = ()
        if self.base:
            self._add_evaluation("base", model, needs)
        sizes = None
        for name in names:
            training = self._add_training(name, model, data, needs)
            if sizes not in (None, training.sizes):
                raise self.recipe.error(name, "its model_config has other sizes than that of sft; give both the same")
            if self.base and sizes is None:
                self._check_base(training)
            sizes, model, needs = training.sizes, str(self.out / name / "model"), (name,)
            if name == names[-1] and "export" in self.recipe.values:
                model, needs = self._add_export(model, needs), ("export",)
            self._add_evaluation(name, model, needs)
        self.plan.model = Path(model)
        for name in data:
            if name.split("_")[0] not in names:
                raise self._data_sections()[name].error("", f"there is no section {name.split('_')[0]} that reads it")

    def _load_tokenizer(self) -> Tokenizer:
        try:
            return load_tokenizer(self.tokenizer_dir)
        except UserError as error:
            key = "tokenizer_dir" if "tokenizer_dir" in self.recipe.values else "base"
            raise self.recipe.error(key, str(error)) from None

    def _add(self, name: str, script: str, flags: ToolFlags, output: Path, needs: tuple[str, ...]) -> None:
        self.plan.stages.append(Stage(name, script, flags.words, flags.values, output, needs))

    def _add_problems(self, name: str, section: Section) -> None:
        earlier = [stage.name for stage in self.plan.stages]
        excluded = section.values.get("exclude", [])
        excluded = excluded if isinstance(excluded, list) else [excluded]
        for other in excluded:
            if f"problems_{other}" not in earlier:
                raise section.error("exclude", f"{other!r} is none of the problems above this one")
        output = self._problem_file(name)
        implied: dict[str, Any] = {
            "exclude": [str(self._problem_file(other)) for other in excluded] or None,
            "output_path": str(output),
            "overwrite": True,
            "tokenizer_dir": None,
        }
        if self.makes_tokenizer and section.values.get("kind") == "arithmetic":
            implied["tokenizer_dir"], self.makes_tokenizer = self.tokenizer_dir, False
        flags = ToolFlags(section, add_problem_flags, implied, own=("exclude",))
        needs = tuple(f"problems_{other}" for other in excluded)
        self._add(f"problems_{name}", "tools/make_problems.py", flags, output, needs)

    def _problem_file(self, name: object) -> Path:
        return self.out / "data" / f"{name}.jsonl"

    def _source(self, section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The flags that name a data set, where `problems` stands for them; and the stage that makes it."""
        if "problems" in section.values:
            name = section.need("problems")
            if name not in self.problems:
                raise section.error("problems", f"{name!r} is unknown; known: {', '.join(self.problems) or 'none'}")
            kind = self.problems[name].values.get("kind")
            return {"dataset_type": kind, "file_path": str(self._problem_file(name))}, (f"problems_{name}",)
        dataset_type, file_path = section.need("dataset_type"), section.need("file_path")
        try:
            ExampleSource(dataset_type, file_path)
        except UserError as error:
            key = "dataset_type" if "dataset_type" in str(error) else "file_path"
            raise section.error(key, str(error)) from None
        return {}, ()

    def _check_prompts(self, section: Section) -> None:
        name = section.take("prompt_type", "plain")
        if name not in PROMPT_TYPES:
            raise section.error("prompt_type", f"{name!r} is unknown; known: {', '.join(PROMPT_TYPES)}")
        if self.tokenizer is None:
            return
        try:
            render(name, "1", self.tokenizer)
        except UserError as error:
            raise section.error("prompt_type", f"{name}: {error}") from None

    def _data_sections(self) -> dict[str, Section]:
        if "data" not in self.recipe.values:
            return {}
        data = self.recipe.section("data")
        data.refuse_unknown(_DATA)
        return data.sections()

    def _add_data(self, name: str) -> Path:
        section = self._data_sections()[name]
        if "mindrecord" in section.values:
            section.refuse_unknown(["mindrecord"])
            file = Path(section.need("mindrecord"))
            if not file.is_file():
                raise section.error("mindrecord", f"{file}: no such file")
            return file
        source, needs = self._source(section)
        self._check_prompts(section)
        output = self.out / "data" / f"{name}.mindrecord"
        implied: dict[str, Any] = source | {"tokenizer_dir": self.tokenizer_dir, "output_path": str(output)}
        implied |= {"overwrite": True, "prompts_only": name == "grpo"}
        flags = ToolFlags(section, add_preprocess_flags, implied, own=("problems",))
        self._add(f"data_{name}", "tools/preprocess_data.py", flags, output, needs)
        return output

    def _add_training(self, name: str, model: str, data: dict[str, Path], needs: tuple[str, ...]) -> Training:
        if name not in data:
            raise self.recipe.error("data", f"{name} is missing; say what {name} reads")
        if name == "grpo" and not model:
            raise self.recipe.error("base", "is missing; GRPO needs a model to start from, or a section sft before it")
        kind, output = KINDS[name], self.out / name
        known = {"data": data[name], "tokenizer": Path(self.tokenizer_dir), "output": output}
        known |= {"start": Path(model)} if model else {}
        known |= {"held_out": data["sft_eval"]} if name == "sft" and "sft_eval" in data else {}
        known["strategy"] = output / "strategy" if name == "sft" else self.out / "strategy"
        section = self.recipe.section(name)
        training = plan_training(section, kind, self.workers, known)
        if self.tokenizer is not None:
            check_tokenizer(self.tokenizer, training.sizes, self.tokenizer_dir)
        self._check_lengths(name, training)
        several = ["--worker_num", str(self.workers), "--log_dir", str(self.out / "logs" / name)]
        flags = [*(several if self.workers > 1 else []), *training.flags]
        made = tuple(f"data_{key}" for key in data if key.split("_")[0] == name)
        made = tuple(stage.name for stage in self.plan.stages if stage.name in made)
        settings = training.settings(kind.sections)
        script = kind.launcher if self.workers > 1 else kind.script
        self.plan.stages.append(Stage(name, script, flags, settings, output, (*needs, *made), resumable=True))
        return training

    def _check_lengths(self, name: str, training: Training) -> None:
        """What a run refuses only when it has read its data, perhaps a day from now."""
        section = self._data_sections()[name]
        if "mindrecord" in section.values:
            return
        if name == "sft":
            tokens, limit = section.take("seq_length", SEQ_LENGTH), training.sizes.max_position_embeddings
            if tokens > limit:
                raise section.error("seq_length", f"is {tokens}, the model has {limit} positions; lower it")
        else:
            tokens, limit = section.take("max_prompt_length", 0), training.config.generate_config.max_prompt_length
            if not 0 < tokens <= limit:
                raise section.error(
                    "max_prompt_length", f"is {tokens}; give at most generate_config.max_prompt_length {limit}"
                )

    def _check_base(self, training: Training) -> None:
        try:
            open_model(self.base, training.sizes)
        except UserError as error:
            raise self.recipe.error("base", str(error)) from None

    def _add_export(self, model: str, needs: tuple[str, ...]) -> str:
        section, output = self.recipe.section("export"), self.out / "model"
        implied = {"input_path": model, "output_path": str(output), "overwrite": True}

        def add_flags(parser: argparse.ArgumentParser) -> None:
            add_convert_flags(parser)
            add_output_flags(parser)

        flags = ToolFlags(section, add_flags, implied)
        try:
            convert_target(flags.args)
        except UserError as error:
            raise section.error("", str(error)) from None
        self._add("export", "tools/convert_weight.py", flags, output, needs)
        return str(output)

    def _add_evaluation(self, of: str, model: str, needs: tuple[str, ...]) -> None:
        if "evaluate" not in self.recipe.values:
            return
        section, output = self.recipe.section("evaluate"), self.out / f"evaluate_{of}.jsonl"
        section.need("verifier_function")  # not every data set has one of its own, which would come out at the end
        source, made = self._source(section)
        self._check_prompts(section)
        implied = source | {"model": model, "tokenizer_dir": self.tokenizer_dir, "output": str(output)}
        if "config" in section.values:
            implied["config"] = str(section.folder / section.need("config"))
        flags = ToolFlags(section, add_evaluate_flags, implied, own=("problems", "config"))
        try:
            read_evaluate_flags(flags.args)
        except UserError as error:
            raise section.error("", str(error)) from None
        self._add(f"evaluate_{of}", "tools/evaluate.py", flags, output, (*needs, *made))
