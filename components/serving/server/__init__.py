"""`tessera serve`: every champion behind HTTP, on one resident backbone."""
