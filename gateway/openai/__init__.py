"""The OpenAI API over the mesh: JSON in, JSON or server-sent events out. `servicer.register_openai` puts it onto a server."""
