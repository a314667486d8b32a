"""The feature store on disk, which `dictlearn features` writes."""
