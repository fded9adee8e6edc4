"""The cold-start mixture: conversations of five modes, checked, cleaned and mixed by ratio."""
