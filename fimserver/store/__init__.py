"""Models on disk: sources, downloads and their checks, and models that other programs have."""
