"""`seedance demo`: every kind of generation once, through real processes, and checked."""
