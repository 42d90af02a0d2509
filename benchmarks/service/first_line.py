"""A driver that tells when it began, and ends: what the benchmark of submitting has Ray run."""

import time

if __name__ == "__main__":
    print(time.time())
