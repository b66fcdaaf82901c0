"""Winograd's minimal filtering F(m x m, 3 x 3): its matrices, and the transforms of one tile as vector code.

    Y = A^T [ (G g G^T) * (B^T d B) ] A        (element-wise product; d is n x n, n = m + 2, Y is m x m)

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). The matrices are Cook and Toom's for a choice of
points and infinity. The points decide the rounding errors: with 0, ±2/3, ±3/2, F(4x4) is about twice as accurate as with the
usual 0, ±1, ±2 (relative error 4e-7 against 8e-7 on random layers); 0, ±1/2, ±1, ±2 are the best found for F(6x6) (2e-6).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

from numba import types
from numba.extending import intrinsic

from .simd import LANES
from .vectors import F32, INT, PANEL, Emitter

POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
    6: (Fraction(0), *(Fraction(s, d) for s, d in ((1, 2), (-1, 2), (1, 1), (-1, 1), (2, 1), (-2, 1)))),
}
Matrix = list[list[Fraction]]


def _polynomial(roots) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [s - c for s, c in zip(shifted, scaled, strict=True)]
    return coefficients


@cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A^T: m x n, G: n x 3, B^T: n x n) of F(m, 3), exact."""
    points = POINTS[m]
    at = [[*(p**i for p in points), Fraction(i == m - 1)] for i in range(m)]
    g, bt = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        g.append([p**k / scale for k in range(3)])
        bt.append([*_polynomial(others), Fraction(0)])
    g.append([Fraction(0), Fraction(0), Fraction(1)])
    bt.append(_polynomial(points))
    return at, g, bt


def _input(m: int):
    """(pd, row, pixel, pv, position): LANES channels of an n x n patch of the image, whose rows and pixels are `row` and
    `pixel` elements apart, to n * n positions of V, `position` elements apart."""
    n, bt = m + 2, matrices(m)[2]

    @intrinsic
    def transform(typing_context, pd, row, pixel, pv, position):
        def code(context, builder, _, arguments):
            e = Emitter(context, builder)
            pd, row, pixel, pv, position = arguments
            columns = [e.times(pixel, j) for j in range(n)]
            patch = [[e.load(e.at(pd, e.times(row, i)), columns[j]) for j in range(n)] for i in range(n)]
            for i, line in enumerate(e.both_sides(bt, patch)):
                for j, value in enumerate(line):
                    e.store(value, pv, e.times(position, i * n + j))
            return context.get_dummy_value()

        return types.void(F32, INT, INT, F32, INT), code

    return transform


def _output(m: int):
    """(pm, bias, pr, r_row, r_pixel, py, row, pixel, low, high): LANES channels of n * n products, a panel apart, to an m x m
    patch of the image: clamp(A^T P A + bias + residual, low, high)."""
    n, at = m + 2, matrices(m)[0]

    @intrinsic
    def transform(typing_context, pm, bias, pr, r_row, r_pixel, py, row, pixel, low, high):
        def code(context, builder, _, arguments):
            e = Emitter(context, builder)
            pm, bias, pr, r_row, r_pixel, py, row, pixel, low, high = arguments
            lowest, highest, added = e.splat(low), e.splat(high), e.load(bias)
            products = [[e.load(pm, (i * n + j) * PANEL) for j in range(n)] for i in range(n)]
            for i, line in enumerate(e.both_sides(at, products)):
                for j, value in enumerate(line):
                    other = e.load(e.at(pr, e.times(r_row, i)), e.times(r_pixel, j))
                    value = e.clamp(e.add(e.add(value, added), other), lowest, highest)
                    e.store(value, e.at(py, e.times(row, i)), e.times(pixel, j))
            return context.get_dummy_value()

        return types.void(F32, F32, F32, INT, INT, F32, INT, INT, types.float32, types.float32), code

    return transform


def _weights(m: int):
    """(pg, pu, position): LANES output channels of 3 x 3 taps, LANES apart, to n * n positions of U; in float64."""
    n, g = m + 2, matrices(m)[1]

    @intrinsic
    def transform(typing_context, pg, pu, position):
        def code(context, builder, _, arguments):
            e = Emitter(context, builder, double=True)
            pg, pu, position = arguments
            taps = [[e.load(pg, (i * 3 + j) * LANES) for j in range(3)] for i in range(3)]
            for i, line in enumerate(e.both_sides(g, taps)):
                for j, value in enumerate(line):
                    e.store(value, pu, e.times(position, i * n + j))
            return context.get_dummy_value()

        return types.void(F32, F32, INT), code

    return transform


input2, input4, input6 = (_input(m) for m in POINTS)
output2, output4, output6 = (_output(m) for m in POINTS)
weights2, weights4, weights6 = (_weights(m) for m in POINTS)
