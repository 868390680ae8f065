"""Text made step by step: who runs, who waits, who reads."""
