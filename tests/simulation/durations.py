"""Lengths of time as a seed says."""

import random


def skewed(chance: random.Random, most: float) -> float:
    """Mostly a small part of `most`, sometimes all of it."""
    return most * chance.random() ** 4
