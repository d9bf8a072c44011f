"""Speed, as ratios measured within one run: one module per `rescue bench` command."""
