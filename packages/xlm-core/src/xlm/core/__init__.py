"""The Protocols that a model fills and the harness that runs it.

Nothing is imported here: ``xlm --help`` must answer without torch.
"""
