"""From YAML files and command lines to a checked configuration, and the page that lists its keys."""
