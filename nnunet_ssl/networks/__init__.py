"""Networks that a plans file may name."""
