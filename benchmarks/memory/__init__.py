"""Memory that operators keep."""
