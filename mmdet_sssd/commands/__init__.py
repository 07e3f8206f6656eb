"""The commands, such as train, wrap and compare; the rest of the package imports none of them."""
