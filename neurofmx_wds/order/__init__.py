"""The order of an epoch and the place in it: pure integer arithmetic.

Knows neither files nor torch.
"""
