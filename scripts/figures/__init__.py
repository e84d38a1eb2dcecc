"""The figures of plot_gallery.py, one a file: draw(quick) -> (figure, what it shows in a line)."""
