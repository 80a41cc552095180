"""Networks of deformable aggregations, in timm's registry: InternImage and FlashInternImage."""
