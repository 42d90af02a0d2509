"""What a job will need and take, before it is started: pure arithmetic, no torch, no Ray."""
