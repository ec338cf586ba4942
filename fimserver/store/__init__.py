"""Models on the disk: where they come from, how they are fetched and checked, and what is there already."""
