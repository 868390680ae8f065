"""Models' files: received in parts, kept sealed, handed out to who may load them."""
