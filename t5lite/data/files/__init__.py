"""CSV, JSON lines, Parquet and text files."""
