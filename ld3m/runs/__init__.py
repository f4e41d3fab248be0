"""The output folder of a run: its files, results, pictures, page and exports."""
