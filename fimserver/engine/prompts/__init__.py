"""Prompts: markers, cuts, budget, healing, token ids."""
