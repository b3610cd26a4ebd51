import numpy as np
import pytest

from r1parallel.generation import philox as noise
from r1parallel.generation.philox import uniforms


def test_a_sample_has_its_own_numbers_whatever_is_drawn_beside_it():
    every = uniforms(7, range(5), 12)
    assert every.shape == (5, 12)
    assert every.dtype == np.float32
    np.testing.assert_array_equal(uniforms(7, [3], 12)[0], every[3])
    np.testing.assert_array_equal(uniforms(7, [4, 0], 12), every[[4, 0]])
    np.testing.assert_array_equal(uniforms(7, range(5), 4), every[:, :4])


def test_seed_and_sample_both_count():
    streams = {tuple(uniforms(seed, [sample], 4)[0]) for seed in range(4) for sample in range(4)}
    assert len(streams) == 16


def test_the_numbers_are_uniform():
    counts, _ = np.histogram(uniforms(1, range(100), 1000), bins=20, range=(0.0, 1.0))
    assert counts.sum() == 100_000
    assert ((counts - 5000.0) ** 2 / 5000.0).sum() < 43.8  # chi-square, 19 degrees of freedom, 0.1 %


@pytest.mark.parametrize("drawn", [0.0, 1.0 - 2.0**-53])
def test_rounding_to_fp32_never_gives_one(monkeypatch, drawn):
    class Fixed:
        def __init__(self, bits):
            pass

        def random(self, count):
            return np.full(count, drawn)

    monkeypatch.setattr(noise.np.random, "Generator", Fixed)
    assert (uniforms(0, [0], 3) >= 0.0).all()
    assert (uniforms(0, [0], 3) < 1.0).all()
