"""The worker: engines, batching, model cache, presence, execution streams."""
