"""What `build` assembles, part by part: checks, ingredients, inputs, updates."""
