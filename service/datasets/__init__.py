"""Uploaded datasets: their files, what reads them, and what works on them in the background."""
