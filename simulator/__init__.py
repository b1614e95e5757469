"""A stand-in for the provider, over real HTTP."""
