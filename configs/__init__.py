"""One file per run; its docstring gives the command, the hardware, the cost and the expected numbers."""
