"""Where every tensor lies: the rank grid, the layout table, and the strategy files made from it."""
