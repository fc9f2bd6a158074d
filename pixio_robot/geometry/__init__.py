"""Geometry from the encoder pass that a policy needs anyway: metric depth, points, calibrated views.

Conventions, everywhere: OpenCV axes (x right, y down, z forward), poses cam2world or cam2base [4 4], metres, pixel
centres at +0.5, depth along the optical axis.
"""
