"""The figures of plot_gallery.py, one per file: draw(quick) -> (figure, what it shows in one line)."""
