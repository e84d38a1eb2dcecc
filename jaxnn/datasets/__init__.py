"""Data to train on: packaged digits, the user's own files, synthetic sets in the plane, and text.

Every source except text returns a `Dataset` of NumPy arrays, already checked: no NaN, no gaps, class ids from 0.
"""

from .dataset import Dataset as Dataset
from .dataset import Standardizer as Standardizer
from .dataset import fit_standardizer as fit_standardizer
from .dataset import split as split
from .dataset import standardize as standardize
from .digits import digits as digits
from .idx import idx_folder as idx_folder
from .idx import read_idx as read_idx
from .synthetic import blobs as blobs
from .synthetic import circles as circles
from .synthetic import moons as moons
from .synthetic import spirals as spirals
from .synthetic import xor as xor
from .tables import csv_file as csv_file
from .tables import npz_file as npz_file
from .text import Text as Text
from .text import Vocabulary as Vocabulary
from .text import byte_vocabulary as byte_vocabulary
from .text import character_vocabulary as character_vocabulary
from .text import standard_library as standard_library
from .text import text_files as text_files
