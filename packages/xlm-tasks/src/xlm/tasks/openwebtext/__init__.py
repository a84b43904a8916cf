"""OpenWebText: documents that Reddit users linked to, the open counterpart of GPT-2's training data.

There is nothing to compute but what `xlm.tasks.text` does for any text; this folder holds the configs.
"""
