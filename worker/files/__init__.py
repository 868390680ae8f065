"""Models' files: where they come from, how they are verified and kept."""
