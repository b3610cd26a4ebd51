"""One rank: train every named case, tied and untied, of plain and of fused operators, with every optimizer.

Writes the losses and this rank's slices.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from helpers.layout_cases import CASES, OPERATORS, OPTIMIZERS, make_step, model_config, start_values, train

from r1parallel.config.schema import ContextConfig
from r1parallel.parallel.worker import run_worker


def main(argv: Sequence[str]) -> None:
    from r1parallel.checkpoint.load import ArraySource
    from r1parallel.models.parameters import load_slices, model_parameters, parameter_values
    from r1parallel.parallel.device import setup_device

    folder, names = Path(argv[0]), argv[1:]
    world = setup_device(ContextConfig(wait_limit=300.0))
    for case in names:
        for tied, operators in product((False, True), OPERATORS):
            model, layout, step = make_step(CASES[case], tied, OPERATORS[operators], world)
            for name, parameter in model_parameters(model).items():  # what only other stages hold has no memory here
                if "embedding" not in name:  # a tied one is sent to the last stage
                    assert parameter.has_init == (layout.slices(name, world.rank) is None), name
            source = ArraySource(start_values(model_config(tied, CASES[case].layers)), "start values")
            for kind in OPTIMIZERS:
                load_slices(model, source, layout, world.rank)
                losses = train(step, kind)
                values = parameter_values(model, layout, world.rank)
                np.savez(
                    folder / f"{case}-{tied}-{operators}-{kind}-{world.rank}.npz", losses=np.array(losses), **values
                )
        print(f"done {case}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_worker(main)
