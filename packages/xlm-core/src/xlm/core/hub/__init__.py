"""Models on the Hugging Face Hub: folders to share, pushing them, loading them without trusting them."""
