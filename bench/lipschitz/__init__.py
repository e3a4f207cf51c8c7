"""Digits classified with certificates, by networks of Lipschitz constant one: `python bench/lipschitz`."""
