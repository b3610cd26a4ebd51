import mindspore as ms
import pytest

from r1parallel.config.schema import ContextConfig
from r1parallel.errors import UserError
from r1parallel.parallel.device import DEVICE_TARGETS, setup_device


def test_graph_mode_on_the_cpu(mindspore_cpu):
    assert ms.get_context("mode") == ms.GRAPH_MODE
    assert ms.get_context("device_target") == "CPU"
    setup_device(ContextConfig())  # a second run in the same process


def test_a_device_that_is_not_here_is_named_in_one_line(mindspore_cpu):
    with pytest.raises(UserError, match=r"^context.device_target Ascend, device_id 3: .*\S$") as refused:
        setup_device(ContextConfig(device_target="Ascend", device_id=3))
    assert "\n" not in str(refused.value)
    assert ms.get_context("device_target") == "CPU"


def test_targets_are_those_of_the_configuration():
    assert ContextConfig().device_target in DEVICE_TARGETS


def test_graphs_are_dumped_where_they_were_asked_for(mindspore_cpu, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(ms, "set_context", lambda **settings: given.update(settings))
    setup_device(ContextConfig(save_graphs=True, save_graphs_path=str(tmp_path)))
    assert given == {"mode": ms.GRAPH_MODE, "save_graphs": 1, "save_graphs_path": str(tmp_path)}
