"""The Seedance 2.0 API, typed."""
