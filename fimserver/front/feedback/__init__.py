"""Outcomes of suggestions: acceptance, persistence, the live comparison, recorded traces."""
