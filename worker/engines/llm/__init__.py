"""Language models: prompts in, text out."""
