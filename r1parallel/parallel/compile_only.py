"""A program that is compiled for one rank of a job which does not run."""

from pathlib import Path

import mindspore as ms
from mindspore import Tensor
from mindspore.parallel.auto_parallel import AutoParallel

from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import read_rank_strategy

# How MindSpore begins when the device has no kernel for an operator, or not for its types.
_NO_KERNEL = "Kernel select failed"


class CompileOnlyProgram:
    """Stands in for what a `CompileOnlyWorld` compiles: it cannot be called.

    The CPU has no kernels for bf16 and for Ascend's fused operators, so the compilation of a program with them ends
    where kernels are selected. By then MindSpore has typed the graph, laid it out and written the strategy file.

    Args:
        program: to be compiled.
        strategy_file: where MindSpore writes the layout.
    """

    def __init__(self, program: AutoParallel, strategy_file: str):
        self._program, self._file = program, Path(strategy_file)

    def compile(self, *inputs: Tensor) -> None:
        """Compile for these inputs, to the end or until a kernel is missing and the strategy file exists and is whole.

        Raises:
            RuntimeError: or whatever MindSpore raises on any other error, and on one before the file is written.
        """
        self._file.unlink(missing_ok=True)  # of another graph of the same model
        try:
            self._program.compile(*inputs)
        except Exception as error:  # the type of a missing kernel's differs from operator to operator
            if _NO_KERNEL not in str(error) or not self._is_written():
                raise
            ms.reset_auto_parallel_context()  # as MindSpore does at the end of a compilation

    def _is_written(self) -> bool:
        try:
            read_rank_strategy(self._file, ())
        except UserError:
            return False
        return True
