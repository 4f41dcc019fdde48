"""Drawing: SVG charts, heatmaps, colours. Nothing here knows about models or evaluations."""
