"""Search over data mixes: the rule that decides what is tried next, and the Ray driver around it."""
