"""The decoder and everything around its parameters: shapes, adapters, loss, generation, and the LM one can ask."""
