"""Numerical kernels: pure functions of arrays, each tested against an independent oracle.

  conv3d            2D and 3D convolution, lowered for each platform (on CPU by conv3d_cpu)
  sinkhorn          log-domain assignment, sharded
  normalised        a norm, ReLU; with a max-pool behind them normalised_pool
  pools             max-pool and average pool
  pairs             two voxels as one of twice the channels, for a TPU

Texture maps, from the outermost function to the innermost:

  voxel_maps        PyRadiomics' settings and names -> maps of an image
  glcm              grey levels -> dense GLCM maps; chooses among
    whole_box       every voxel counts, integers then float32
    masked_windows  a mask, packed uint32 words
    moment_windows  central moments, narrow exact sums
    exact_windows   64-bit sums: other angles, weights, float64, moments of too many levels
  chosen_maps       one map per volume, chosen by data, inside a jitted step
  patches           strided patches, each with its own grey levels (packed_patches); whole regions
  first_order       first-order maps, computed by window_statistics
  grey_levels       discretisation
  pair_features     definition of each GLCM feature
  windows           definition of a window and of its pairs of voxels
"""
