"""Typed configuration: one list of keys (`schema`), read from YAML and from the command line."""

from r1parallel.config.load import load_config
from r1parallel.config.schema import RunConfig

__all__ = ["RunConfig", "load_config"]
