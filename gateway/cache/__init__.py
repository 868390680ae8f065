"""Answers given before, given again: of models that say the same request gets the same answer."""
