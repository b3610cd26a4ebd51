"""Memory that CPU operators keep while a graph lives: python -m benchmarks.memory.cpu_operators

Each operator is chained 20 times over a [4096, 1024] fp32 tensor (16.8 MB) in a process of its own; printed is the
growth of the peak resident memory for each operator in the chain, less that of a chain which keeps nothing.
"""

import subprocess
import sys

from r1parallel.monitor.memory import peak_resident_bytes

CHAIN, ROWS, COLUMNS = 20, 4096, 1024
NAMES = ("relu", "add_broadcast", "mul_broadcast", "transpose", "bias_add", "tile", "softmax", "matmul", "split_concat")


def measure(name: str) -> float:
    """Peak resident MB that the chain of one operator adds."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")

    class Chain(nn.Cell):
        def __init__(self):
            super().__init__()
            self.add, self.mul, self.relu, self.bias_add = ops.Add(), ops.Mul(), ops.ReLU(), ops.BiasAdd()
            self.transpose, self.tile, self.softmax = ops.Transpose(), ops.Tile(), ops.Softmax(-1)
            self.matmul, self.split, self.join = ops.MatMul(), ops.Split(1, 2), ops.Concat(1)
            self.reshape = ops.Reshape()
            self.row = ms.Parameter(Tensor(np.full(COLUMNS, 0.5, np.float32)))  # a constant would be folded
            self.square = Tensor(np.full((COLUMNS, COLUMNS), 1e-3, np.float32))

        def construct(self, x):
            for _ in range(CHAIN):
                if name == "relu":
                    x = self.relu(x)
                elif name == "add_broadcast":
                    x = self.add(x, self.row)
                elif name == "mul_broadcast":
                    x = self.mul(x, self.row)
                elif name == "transpose":
                    turned = self.transpose(self.reshape(x, (8, 512, 16, 64)), (0, 2, 1, 3))
                    x = self.reshape(turned, (ROWS, COLUMNS))
                elif name == "bias_add":
                    x = self.bias_add(x, self.row)
                elif name == "tile":
                    x = self.mul(x, self.tile(self.reshape(self.row, (1, COLUMNS)), (ROWS, 1)))
                elif name == "softmax":
                    x = self.softmax(x)
                elif name == "matmul":
                    x = self.matmul(x, self.square)
                elif name == "split_concat":
                    left, right = self.split(x)
                    x = self.join((right, left))
            return x

    chain = Chain()
    chain.set_train(False)
    before = peak_resident_bytes()
    chain(Tensor(np.ones((ROWS, COLUMNS), np.float32))).asnumpy()
    return (peak_resident_bytes() - before) / 1e6


def main() -> None:
    """Measure one operator if it is named, else all of them."""
    if len(sys.argv) > 1:
        print(f"{measure(sys.argv[1]):.0f}")
        return
    grown = {}
    for name in NAMES:
        done = subprocess.run(
            [sys.executable, __file__, name],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            start_new_session=True,
        )
        grown[name] = float(done.stdout.split()[-1])
    for name in NAMES[1:]:
        print(f"{name:15} {max(0.0, grown[name] - grown['relu']) / CHAIN:6.1f} MB kept for each operator")


if __name__ == "__main__":
    main()
