"""What runs inside the engine process: the only place where native code does."""
