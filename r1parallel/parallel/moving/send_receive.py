"""The two graphs of a message between two ranks."""

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm


class SendCell(nn.Cell):
    """Send fp32 [N] to a rank; the result only says that it is done."""

    def __init__(self, receiver: int):
        super().__init__(auto_prefix=False)
        self.send = ops.Send(sr_tag=0, dest_rank=receiver, group=GlobalComm.WORLD_COMM_GROUP)
        self.depend = ops.Depend()

    def construct(self, x_N: Tensor) -> Tensor:
        return self.depend(x_N, self.send(x_N))


class ReceiveCell(nn.Cell):
    """fp32 [N] from a rank; the argument is not looked at."""

    def __init__(self, sender: int, count: int):
        super().__init__(auto_prefix=False)
        world = GlobalComm.WORLD_COMM_GROUP
        self.receive = ops.Receive(sr_tag=0, src_rank=sender, shape=[count], dtype=ms.float32, group=world)

    def construct(self, start: Tensor) -> Tensor:
        return self.receive(start)
