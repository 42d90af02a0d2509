"""The OpenAI-compatible API: its forms, and how they map to jobs, datasets and models."""
