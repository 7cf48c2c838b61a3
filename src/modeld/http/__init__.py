"""HTTP: the routes that OpenAI's clients speak, closed by default, over the node's service and its gateway."""
