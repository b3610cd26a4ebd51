"""Which stages of a recipe are finished, and with which settings: one small file a stage in <output_dir>/stages."""

import hashlib
import json
from typing import Any

from r1parallel.atomic import replacing
from r1parallel.errors import UserError
from r1parallel.recipe.stage import Plan, Stage

FOLDER = "stages"


class Markers:
    """The files of one plan. Making it only reads.

    Raises:
        UserError: a finished stage has other settings now, or was made from what has other settings now.
    """

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.output / FOLDER
        self._hashes: dict[str, str] = {}
        self._found: dict[str, dict[str, Any]] = {}
        for stage in plan.stages:
            mark = {"settings": stage.settings, "needs": {need: self._hashes[need] for need in stage.needs}}
            self._hashes[stage.name] = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()[:12]
            path = self._folder / f"{stage.name}.json"
            if path.is_file() and stage.output.exists():  # what is gone is made again
                self._found[stage.name] = self._read(stage)
                self._check(stage, self._found[stage.name], json.loads(json.dumps(mark)))

    def is_finished(self, stage: Stage) -> bool:
        """Whether there is nothing left to do."""
        return "seconds" in self._found.get(stage.name, {})

    def result(self, stage: Stage) -> str:
        """The last line that a finished stage printed."""
        return str(self._found[stage.name]["result"])

    def seconds(self, stage: Stage) -> float:
        """What a finished stage took, without what was lost when it was stopped."""
        return float(self._found[stage.name]["seconds"])

    def start(self, stage: Stage) -> None:
        """Note what the stage is made from."""
        needs = {need: self._hashes[need] for need in stage.needs}
        self._write(stage, {"hash": self._hashes[stage.name], "needs": needs, "settings": stage.settings})

    def finish(self, stage: Stage, result: str, seconds: float) -> None:
        """Note that the stage is finished."""
        self.start(stage)
        self._write(stage, self._read(stage) | {"result": result, "seconds": seconds})
        self._found[stage.name] = self._read(stage)

    def _read(self, stage: Stage) -> dict[str, Any]:
        path = self._folder / f"{stage.name}.json"
        try:
            mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not readable as JSON: {error}; remove it and {stage.output}") from None
        return mark

    def _write(self, stage: Stage, mark: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{stage.name}.json") as temporary:
            temporary.write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")

    def _check(self, stage: Stage, old: dict[str, Any], new: dict[str, Any]) -> None:
        again = f"undo that, give another --output_dir, or remove {stage.output} to do it again"
        for need, digest in new["needs"].items():
            if old["needs"].get(need) != digest:
                raise UserError(f"{stage.output}: made from {need} as it was before its settings changed; {again}")
        if "seconds" not in old:  # the run itself knows what may change between its start and its continuation
            return
        for key in {**old["settings"], **new["settings"]}:
            was, now = old["settings"].get(key), new["settings"].get(key)
            if was != now:
                raise UserError(f"{stage.name} is finished; its {key} was {was!r}, now it is {now!r}; {again}")
