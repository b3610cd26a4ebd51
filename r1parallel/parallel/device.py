"""The one place where the device is set up. Called once, before any Cell is made."""

import mindspore as ms

from r1parallel.config.schema import ContextConfig
from r1parallel.errors import UserError

DEVICE_TARGETS = ("CPU", "Ascend")


def setup_device(config: ContextConfig) -> None:
    """Graph mode on the configured device.

    Raises:
        UserError: MindSpore has no such device here.
    """
    try:
        ms.set_context(mode=ms.GRAPH_MODE)
        ms.set_recursion_limit(config.max_call_depth)
        ms.set_device(config.device_target, config.device_id)
    except (RuntimeError, ValueError, TypeError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"context.device_target {config.device_target}, device_id {config.device_id}: {first_line}"
        ) from None
    if config.save_graphs:
        ms.set_context(save_graphs=1, save_graphs_path=config.save_graphs_path)
