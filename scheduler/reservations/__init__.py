"""Places kept for clients that talk to one worker alone."""
