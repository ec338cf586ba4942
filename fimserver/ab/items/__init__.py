"""Items of a comparison: spans of source files and keystroke traces."""
