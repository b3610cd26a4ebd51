"""Ranks: the layout table, starting jobs, moving arrays, compiling a program over a mesh."""
