"""Apache Beam jobs: raw logs to a dataset directory, and recipes for public data sets."""
