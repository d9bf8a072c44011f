"""The ingredients that a recipe names: the section `optim` is implemented in `sections/optim`."""
