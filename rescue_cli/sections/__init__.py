"""What the sections of a recipe name; the section `optim` is served by `sections/optim/`."""
