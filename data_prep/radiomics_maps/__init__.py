"""PyRadiomics' extractor of voxel maps on this package's texture engine, without PyRadiomics."""
