"""Canvases: denoising loop, schedules, lengths, caches."""
