"""GGUF files and Hugging Face folders in, tensors and metadata out; packed types to float32 and back."""
