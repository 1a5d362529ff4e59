"""What the commands of ``paged-stream`` share, and those that have no package of their own."""
