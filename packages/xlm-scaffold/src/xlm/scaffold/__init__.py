"""Makes new model packages from the template of a model."""
