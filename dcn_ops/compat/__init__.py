"""Stand-ins for the deformable layers of other libraries, to be imported in their place."""
