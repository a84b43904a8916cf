"""OpenWebText: documents that Reddit users linked to, the open counterpart of GPT-2's training data.

The code is that of ``xlm.tasks.text``; this folder holds the configs.
"""
