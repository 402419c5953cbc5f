"""Remembers what survives a crash: chunks and manifests in LMDB, raw vectors in append-only segment files."""
