"""Pictures of a layout: mesh, block, pipeline schedule."""
