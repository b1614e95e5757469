"""`seedance gateway`: takes in the provider's callbacks, and tells whether the service is well.

It holds no API key and calls no provider: a callback makes a row due, and a worker looks. Nothing
depends on it; while it is away, polling does all.
"""
