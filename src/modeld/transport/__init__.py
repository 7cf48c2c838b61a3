"""The public border of a node: its wire, its server, its client."""
