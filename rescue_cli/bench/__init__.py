"""Speed, as ratios within one run: one module for each `rescue bench` command."""
