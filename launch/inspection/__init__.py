"""What `osteojax inspect` draws: contact sheet, histograms, orthogonal slices."""
