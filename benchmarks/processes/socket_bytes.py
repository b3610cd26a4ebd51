"""Bytes that reach this process over TCP, as the kernel counts them: all that MCCL brings on the CPU.

MCCL answers every message with the same message, so that as many bytes come back as were sent. The two are kept apart:
a rank listens, others connect to it and send their messages there, and its answers travel the same connection.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_INFO_SIZE, _BYTES_RECEIVED = 256, 128  # of Linux's struct tcp_info; where its tcpi_bytes_received stands


class Received(NamedTuple):
    """Bytes of messages, and of answers to own messages."""

    messages: int
    answers: int

    def since(self, before: "Received") -> "Received":
        """What came in between, if no connection was closed meanwhile. Answers may come late."""
        return Received(self.messages - before.messages, self.answers - before.answers)


def received_bytes() -> Received:
    """Over the connections that are open now."""
    listening: set[int] = set()
    connected: list[tuple[int, int]] = []  # own port, bytes
    for port, count in _connections():
        if count is None:
            listening.add(port)
        else:
            connected.append((port, count))
    messages = sum(count for port, count in connected if port in listening)
    return Received(messages, sum(count for _, count in connected) - messages)


def _connections() -> Iterator[tuple[int, int | None]]:
    """(own port, bytes received) of each TCP socket; None of one that listens."""
    for name in os.listdir("/proc/self/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:  # closed since it was listed
            continue
        try:
            connection = socket.socket(fileno=copy)
        except OSError:  # a file
            os.close(copy)
            continue
        with contextlib.closing(connection):
            if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
                continue
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield connection.getsockname()[1], None
            else:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
                yield connection.getsockname()[1], struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]
