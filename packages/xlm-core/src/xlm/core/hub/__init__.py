"""Models on the Hugging Face Hub: export, push, and loading of untrusted models."""
