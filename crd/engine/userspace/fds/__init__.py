"""Open files: descriptors, the open file descriptions behind them, and what these are open on."""
