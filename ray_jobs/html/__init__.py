"""Pages that stand by themselves: no script, nothing loaded, every word escaped."""
