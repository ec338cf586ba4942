"""Reports of a comparison: terminal table, HTML page, charts."""
