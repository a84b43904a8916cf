"""The command ``xlm``: its arguments, the composition of a config, the jobs."""
