"""Text to token ids and back: tokenizer files, added tokens and chat templates."""
