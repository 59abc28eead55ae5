"""Pictures in a language model: the tower, the tiles of a picture, and how many tokens it becomes."""
