"""Processes that work together: how they are started, how they meet, and what they say to each other."""
