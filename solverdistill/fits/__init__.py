"""Fits without an optimizer: how a student's few params are found by something better than gradient descent.

==============  =========================================================================================
race            which grid, and which solver, to start from: a few dozen end points of each
least_squares   every row of the table from one small linear problem; no derivatives of the network
point_search    points and weights of an EPD step from a dozen slopes; no derivatives of the network
gauss_newton    damped second-order steps on the end points, with sketched or exact curvature
greedy          the closed form of D-ODE
==============  =========================================================================================

All are functions of a student, a denoiser and reference data that return params and a `report.FitReport`, share their
work among processes (`support.processes`), and never return anything worse on held-out samples than they got.
"""
