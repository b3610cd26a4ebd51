"""Multi-tensor operators of the optimizer step, for the CPU backend; kernels: `cpu_backend/kernels/optimizer/`.

One operator takes all tensors: compiling one for each of some hundred tensors takes longer than running it.
"""

from typing import Any

from mindspore.ops import PrimitiveWithInfer, prim_attr_register, signature


class MultiTensorSquareSum(PrimitiveWithInfer):
    """x_1 … x_P → Σ x² of each, fp32 [P], accumulated in float64.

    Args:
        count: P.
    """

    @prim_attr_register
    def __init__(self, count: int):
        names = [f"x_{i}" for i in range(count)]
        self.init_prim_io_names(inputs=names, outputs=["sums_P"])
        self.set_signatures([signature.make_sig(name) for name in names])

    def infer_shape(self, *shapes: list[int]) -> list[int]:
        return [len(shapes)]

    def infer_dtype(self, *types: Any) -> Any:
        return types[0]


class MultiTensorAdd(PrimitiveWithInfer):
    """sum_i ← sum_i + x_i: (sum_1 … sum_P, x_1 … x_P) → 0, fp32 [1].

    Args:
        count: P.
    """

    @prim_attr_register
    def __init__(self, count: int):
        sums, others = [f"sum_{i}" for i in range(count)], [f"x_{i}" for i in range(count)]
        self.init_prim_io_names(inputs=[*sums, *others], outputs=["done"])
        self.set_signatures(
            [
                *(signature.make_sig(name, signature.sig_rw.RW_WRITE) for name in sums),
                *(signature.make_sig(name) for name in others),
            ]
        )
        self.add_prim_attr("side_effect_mem", True)

    def infer_shape(self, *shapes: list[int]) -> list[int]:
        return [1]

    def infer_dtype(self, *types: Any) -> Any:
        return types[0]


class MultiTensorAdamW(PrimitiveWithInfer):
    """m, v ← moments of g / divisor;  p ← p − lr·(m / (√v + eps) + decay·p);  g ← 0.

    (divisor, lr, per_lr, eps, p_1 … p_P, g_1 … g_P, m_1 … m_P, v_1 … v_P) → lr. The first four are fp32 scalars; the
    decay of a tensor is its own times per_lr.

    Args:
        beta1, beta2: decay rates of the moments.
        decays: weight decay of each of the P tensors.
    """

    @prim_attr_register
    def __init__(self, beta1: float, beta2: float, decays: tuple[float, ...]):
        read = ["divisor", "lr", "per_lr", "eps"]
        written = [f"{kind}_{i}" for kind in "pgmv" for i in range(len(decays))]
        self.init_prim_io_names(inputs=[*read, *written], outputs=["done"])
        self.set_signatures(
            [
                *(signature.make_sig(name) for name in read),
                *(signature.make_sig(name, signature.sig_rw.RW_WRITE) for name in written),
            ]
        )
        self.add_prim_attr("side_effect_mem", True)

    def infer_shape(self, divisor: list[int], lr: list[int], *others: Any) -> list[int]:
        return lr

    def infer_dtype(self, divisor: Any, lr: Any, *others: Any) -> Any:
        return lr
