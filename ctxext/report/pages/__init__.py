"""Pages: results worded and laid out, as text, JSON, and one HTML file."""
