"""The random numbers of sampling. They belong to a sample, not to a process or a batch.

Token t of sample i is drawn with the t-th number of the Philox stream (seed, i) (Salmon et al. 2011), so a completion
does not depend on how samples are spread over batches and ranks, and a resumed run needs no generator state.
"""

from collections.abc import Sequence

import numpy as np


def uniforms(seed: int, samples: Sequence[int], count: int) -> np.ndarray:
    """Numbers in [0, 1), float32 [len(samples), count]."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, sample])).random(count) for sample in samples]
    # Rounding to fp32 could give 1.0, which no token's share of the probability reaches.
    return np.minimum(np.stack(rows).astype(np.float32), np.float32(1.0 - 2.0**-24))
