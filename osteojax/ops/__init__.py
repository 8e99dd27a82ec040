"""Numerical kernels: pure functions of arrays, each tested against an independent oracle.

  conv3d            3D convolution, the best lowering of each platform (conv3d_cpu)
  sinkhorn          log-domain assignment, sharded

Texture maps, from the door inwards:

  voxel_maps        PyRadiomics' settings and names -> maps of an image
  glcm              grey levels -> dense GLCM maps; chooses among
    whole_box       every voxel counts, integers then float32
    masked_windows  a mask, packed uint32 words
    exact_windows   64-bit sums: central moments, other angles, weights, float64
  chosen_maps       one map per volume, chosen by data, inside a jitted step
  patches           strided patches with grey levels of their own, whole regions (packed_patches)
  first_order       first-order maps (window_statistics)
  grey_levels       discretisation
  pair_features     what each GLCM feature is; windows: what a window and a pair are
"""
