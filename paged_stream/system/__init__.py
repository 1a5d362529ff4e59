"""The machine and the process: processors, terminals, optional packages. Knows nothing of ours."""
