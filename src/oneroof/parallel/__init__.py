"""A decoder on several ranks: collectives hung where shares are put together, stages behind one another."""
