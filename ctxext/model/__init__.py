"""The decoder and its parameters: shapes, adapters, loss, generation, and the LM of the API."""
