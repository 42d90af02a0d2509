"""The SQL store: one row a job; the store is the truth, Ray is observed."""
