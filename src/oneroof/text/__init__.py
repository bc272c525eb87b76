"""Text in, tokens out, and back: tokenizers of four file formats, conversations through a chat template."""
