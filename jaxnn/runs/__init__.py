"""A run from its settings to its folder: what the commands `jaxnn train` and `jaxnn train-text` do.

settings    everything that determines a run, a dataclass whose fields are the command's flags
data        the data of a run of examples, read, split and standardised
folder      the run's folder: settings, metrics, parameters
examples    a run on examples, from settings to figures
text        a run on a text
"""
