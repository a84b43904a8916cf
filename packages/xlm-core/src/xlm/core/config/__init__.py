"""The config of a run: its schema, instantiation of its nodes, error messages, hiding of secrets."""
