"""Several runs beside one another: what `dictlearn compare` and a multirun end with. No torch here."""
