"""Data to train on: packaged digits, the user's own files, synthetic sets in the plane, and text.

Every source except text returns a `Dataset` of NumPy arrays, already checked: no NaN, no gaps, class ids from 0.
"""

from jaxnn.datasets.dataset import Dataset as Dataset
from jaxnn.datasets.dataset import Standardizer as Standardizer
from jaxnn.datasets.dataset import fit_standardizer as fit_standardizer
from jaxnn.datasets.dataset import split as split
from jaxnn.datasets.dataset import standardize as standardize
from jaxnn.datasets.digits import digits as digits
from jaxnn.datasets.idx import idx_folder as idx_folder
from jaxnn.datasets.idx import read_idx as read_idx
from jaxnn.datasets.synthetic import blobs as blobs
from jaxnn.datasets.synthetic import circles as circles
from jaxnn.datasets.synthetic import moons as moons
from jaxnn.datasets.synthetic import spirals as spirals
from jaxnn.datasets.synthetic import xor as xor
from jaxnn.datasets.tables import csv_file as csv_file
from jaxnn.datasets.tables import npz_file as npz_file
from jaxnn.datasets.text import Text as Text
from jaxnn.datasets.text import Vocabulary as Vocabulary
from jaxnn.datasets.text import byte_vocabulary as byte_vocabulary
from jaxnn.datasets.text import character_vocabulary as character_vocabulary
from jaxnn.datasets.text import standard_library as standard_library
from jaxnn.datasets.text import text_files as text_files
from jaxnn.datasets.text import trigram_bits as trigram_bits
