"""Drawings: SVG charts, heatmaps and their colours."""
