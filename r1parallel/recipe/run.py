"""Run a recipe from the first stage that is not finished to the report."""

import json
from pathlib import Path

from r1parallel.atomic import replacing
from r1parallel.errors import UserError
from r1parallel.monitor.report.report import write_report
from r1parallel.recipe.commands import Stages
from r1parallel.recipe.markers import FOLDER, Markers
from r1parallel.recipe.plan import plan_recipe
from r1parallel.recipe.stage import Plan

_EVALUATION = "evaluate_"


def run_recipe(root: Path, path: Path, output_dir: str | None, resume: bool) -> Path:
    """Run the recipe in `path`; returns its summary.json.

    Args:
        root: the project's root, where run_sft.py and tools/ are.
        path: the YAML.
        output_dir: stronger than the YAML's.
        resume: go on with what is in that folder.

    Raises:
        UserError: the recipe is wrong, the folder is another's, or a stage failed.
    """
    plan = plan_recipe(path, output_dir)
    _check_folder(plan.output, resume)
    markers = Markers(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    for folder in {stage.output.parent for stage in plan.stages}:
        folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(root, plan.output / "stages.log", plan.limit_s)
    for stage in plan.stages:
        if markers.is_finished(stage):
            print(f"[{stage.name}] finished before", flush=True)
            continue
        markers.start(stage)
        more = ["--resume_training"] if resume and stage.resumable else []
        result = stages.run(stage.name, stage.script, *stage.flags, *more)
        markers.finish(stage, result, stages.seconds[stage.name])
    return _tell(plan, markers)


def _check_folder(folder: Path, resume: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not resume:
        raise UserError(f"{folder}: holds files already; go on with --resume, or give another --output_dir")
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder}: holds files that are no recipe's; give another --output_dir")


def _tell(plan: Plan, markers: Markers) -> Path:
    """Write summary.json and the report, and print what came out."""
    results = {
        stage.name.removeprefix(_EVALUATION): json.loads(markers.result(stage))
        for stage in plan.stages
        if stage.name.startswith(_EVALUATION)
    }
    seconds = {stage.name: markers.seconds(stage) for stage in plan.stages}
    summary = {
        "accuracy": {name: result["accuracy"] for name, result in results.items()},
        "num_problems": {name: result["num_problems"] for name, result in results.items()},
        "model": str(plan.model),
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
    }
    path = plan.output / "summary.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = write_report(plan.output, f"R1 recipe {plan.output.resolve().name}")
    for name, result in results.items():
        print(f"accuracy of {name}: {result['accuracy']:.1%} of {result['num_problems']} problems")
    print(f"summary: {path}\nreport:  {report}\nmodel:   {plan.model}")
    return path
