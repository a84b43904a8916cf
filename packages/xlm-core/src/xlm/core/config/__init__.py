"""The config of a run: its schema, its nodes made into objects, mistakes in it, secrets hidden from it."""
