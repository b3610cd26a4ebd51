"""The two tables: parameter names of every tool, and which part of which tensor lies on which rank."""
