"""Problems made on the spot, with their answers."""
