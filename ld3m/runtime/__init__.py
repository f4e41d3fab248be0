"""The ground of every room: files, devices, randomness, fingerprints, counts of bytes and operations."""
