"""Stage 1 and Stage 2 as two small tasks over one loop. Knows nothing of Ray."""
