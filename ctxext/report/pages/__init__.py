"""What a person reads: the verdict, text tables, and the HTML page."""
