"""What starts next: pure rules, without store, clock or cluster."""
