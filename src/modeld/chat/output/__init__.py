"""What the output parser is made of: formats as data, and the few grammars they choose from."""
