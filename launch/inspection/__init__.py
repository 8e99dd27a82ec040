"""Figures of `osteojax inspect`: contact sheet, histograms, orthogonal slices."""
