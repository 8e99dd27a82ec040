"""PyRadiomics' extractor of voxel maps, reimplemented on OsteoJAX's texture engine."""
