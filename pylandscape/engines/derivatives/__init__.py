"""Gradients and curvature products by compiled kernels."""
