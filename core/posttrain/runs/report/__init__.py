"""The report: one HTML page about one run or several, complete in itself."""
