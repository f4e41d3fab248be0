"""What every room stands on: files, devices, randomness, fingerprints, counts of bytes and operations."""
