"""Reports of runs: one HTML page with data, learning curves, results, errors and images."""
