"""From messages to a prompt and from output back to parts: templates and the incremental parser."""
