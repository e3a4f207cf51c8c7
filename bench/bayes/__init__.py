"""Digits classified with calibrated uncertainty: Bayesian quantised networks and what they are compared with."""
