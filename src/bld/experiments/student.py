"""Student's t and Fisher's F: the probabilities that verdicts need, by the regularised incomplete beta function."""

from __future__ import annotations

import math

SMALLEST = 1e-300
PRECISION = 1e-14


def beta_fraction(a: float, b: float, x: float) -> float:
    """I_x(a, b) for a, b > 0 and 0 ≤ x ≤ 1: Lentz's continued fraction (Numerical Recipes, §6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other tail converges faster
        return 1 - beta_fraction(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _off_zero(1 + term * d)
        c = _off_zero(1 + term / c)
        fraction *= c * d
        if abs(1 - c * d) < PRECISION:
            break
    return front * (fraction - 1)


def t_two_sided(t: float, freedom: float) -> float:
    """P(|T| ≥ |t|) for Student's t with so many degrees of freedom."""
    return beta_fraction(freedom / 2, 0.5, freedom / (freedom + t * t))


def f_upper(f: float, between: float, within: float) -> float:
    """P(F ≥ f) for Fisher's F with these degrees of freedom."""
    return beta_fraction(within / 2, between / 2, within / (within + between * f))


def _off_zero(value: float) -> float:
    return value if abs(value) > SMALLEST else SMALLEST
