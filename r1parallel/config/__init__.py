"""Typed configuration: one list of keys (`schema`), read from YAML and from the command line."""
