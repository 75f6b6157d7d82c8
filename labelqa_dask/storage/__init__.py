"""Where data and results are: locations, sources that are read by rows, sinks, and the record of a run."""
