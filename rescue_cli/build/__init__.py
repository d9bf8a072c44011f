"""The only room where the names of a recipe become the objects that the engine runs."""
