"""The seven diagnoses of HAM10000 as data. Class names are typed nowhere else.

Source: P. Tschandl, C. Rosendahl, H. Kittler, "The HAM10000 dataset", Scientific Data 5:180161
(2018), doi:10.1038/sdata.2018.161. The column names are those of ISIC 2018 Task 3.
"""

from typing import NamedTuple


class Diagnosis(NamedTuple):
    """One class: its `dx` code in the metadata, its full name, and whether it counts as malignant.

    akiec (actinic keratosis, Bowen's disease) counts as malignant: the dataset's paper describes it
    as an early, in-situ form of squamous cell carcinoma.
    """

    code: str
    name: str
    malignant: bool


DIAGNOSES = (
    Diagnosis("akiec", "Actinic keratosis / Bowen's disease", True),
    Diagnosis("bcc", "Basal cell carcinoma", True),
    Diagnosis("bkl", "Benign keratosis", False),
    Diagnosis("df", "Dermatofibroma", False),
    Diagnosis("mel", "Melanoma", True),
    Diagnosis("nv", "Melanocytic nevus", False),
    Diagnosis("vasc", "Vascular lesion", False),
)
"""The diagnoses in the order of every probability vector of this package."""

CLASS_CODES = tuple(diagnosis.code for diagnosis in DIAGNOSES)
CLASS_NAMES = tuple(diagnosis.name for diagnosis in DIAGNOSES)
NUM_CLASSES = len(DIAGNOSES)
LABEL_OF = {code: label for label, code in enumerate(CLASS_CODES)}
"""`dx` code to integer label, 0 to 6."""

ISIC_COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""The columns of ISIC 2018 Task 3 prediction and truth files, in this order, after `image`."""

DISCLAIMER = "For research and education only: not a medical device, not for clinical use."
SYNTHETIC_NOTE = "Synthetic sample: drawn by a program. It says nothing about real skin lesions."
