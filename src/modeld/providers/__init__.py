"""One module for each backend type, loaded by name through :mod:`modeld.repository.catalog`."""
