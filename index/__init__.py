"""index/ decides: what vectors mean - encoders, statistics, drift, the online index."""
