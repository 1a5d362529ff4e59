"""A package, so that what its fixtures start for all of its modules ends with the last of them."""
