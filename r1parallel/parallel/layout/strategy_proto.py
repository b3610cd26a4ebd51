"""The message types of a strategy file, as MindSpore's `node_strategy.proto` numbers them.

They are declared here because importing MindSpore takes seconds, and its generated module refuses to load
beside a recent protobuf. A descriptor pool of our own keeps them apart from MindSpore's.
"""

import os
from typing import Any

_PACKAGE = "mindspore.straspb"
# Message → its fields, numbered from 1: (name, kind). Repeated ones are marked by [], the rest are required.
_MESSAGES: dict[str, list[tuple[str, str]]] = {
    "ParallelStrategy": [("dim", "[]uint32")],
    "ParallelStrategys": [("stage", "uint32"), ("parallel_strategy", "[]ParallelStrategy")],
    "ParallelStrategyItem": [("node_name", "string"), ("parallel_strategys", "ParallelStrategys")],
    "DevMatrix": [("dim", "[]uint32")],
    "TensorMap": [("dim", "[]int32")],
    "ParamSplitShape": [("dim", "[]int64")],
    "IndicesOffset": [("dim", "[]int64")],
    "ParallelLayouts": [
        ("dev_matrix", "[]DevMatrix"),
        ("tensor_map", "[]TensorMap"),
        ("param_split_shape", "[]ParamSplitShape"),
        ("indices_offset", "[]IndicesOffset"),
        ("field", "int32"),
        ("opt_weight_shard_step", "int32"),
        ("opt_weight_shard_size", "int32"),
    ],
    "ParallelLayoutItem": [("param_name", "string"), ("parallel_layouts", "ParallelLayouts")],
    "ParallelStrategyMap": [
        ("current_stage", "uint32"),
        ("parallel_strategy_item", "[]ParallelStrategyItem"),
        ("parallel_layout_item", "[]ParallelLayoutItem"),
    ],
}


def _strategy_map_class() -> Any:
    # Whoever loads protobuf first chooses its implementation for the whole process, and MindSpore's import fails
    # on any but the one in Python, which it chooses in this way itself.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="node_strategy.proto", package=_PACKAGE, syntax="proto2")
    for message_name, message_fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for number, (name, kind) in enumerate(message_fields, start=1):
            field = message.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind.startswith("[]") else kinds.LABEL_REQUIRED
            kind = kind.removeprefix("[]")
            if kind in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ParallelStrategyMap"))


ParallelStrategyMap: Any = _strategy_map_class()
