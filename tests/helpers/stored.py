"""Reading what tests wrote."""

from r1parallel.checkpoint.reading.source import open_source
from r1parallel.checkpoint.reading.tensor_rows import StoredRows
from r1parallel.checkpoint.reading.windows import read_rows


def read_entry(entry, region=None):
    """A stored tensor of one file, or a region of it."""
    span = tuple((0, size) for size in entry.shape)
    return read_rows(StoredRows(entry.shape, entry.dtype, {span: [entry]}), region)


def read_all(path, layout=None):
    """Name → full tensor of a checkpoint of any form."""
    source = open_source(path, layout)
    return {name: source.read(name) for name in source.shapes}
