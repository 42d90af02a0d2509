"""The code that runs on the Ray cluster: one driver process per job."""
