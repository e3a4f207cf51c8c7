"""ARMA layers: how far they see, and that training them needs a stable parametrisation: `python bench/arma`."""
