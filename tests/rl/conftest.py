import pytest
from helpers.small_trainers import LEADER, share_of_sevens
from helpers.tiny_runs import tiny_inputs


@pytest.fixture(scope="module")
def inputs(mindspore_cpu):
    return tiny_inputs()


@pytest.fixture(scope="module")
def sevens():
    """Completions are scored in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LEADER, share_of_sevens)
        yield
