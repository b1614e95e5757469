"""Ways to do the same work: submit each request, look until its task has ended, keep the result.

Each module is a program as its library's documentation advises to write it, and knows nothing of
the measuring but the file that it touches when it is ready. `benchmarks.entrants` starts them.
"""
