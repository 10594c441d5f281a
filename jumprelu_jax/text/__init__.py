"""Text: documents → tokens → packed sequences, on disk and in memory."""
