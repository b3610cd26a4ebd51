"""Running code that nobody trusts, and the limits of one call of a reward."""
