"""The texture engine: GLCM and first-order features of windows, as arrays on any device."""
