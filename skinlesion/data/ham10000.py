"""HAM10000 as one dataset among others: its classes, its columns, its files.

Source: P. Tschandl, C. Rosendahl, H. Kittler, "The HAM10000 dataset", Scientific Data 5:180161
(2018), doi:10.1038/sdata.2018.161. No other file knows these classes, except the one that draws the
synthetic sample. The list of near duplicates is `near_duplicates.csv`.
"""

from skinlesion.diagnoses import DatasetInfo

METADATA_NAME = "HAM10000_metadata.csv"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
"""The columns of the metadata that must be present. Others are kept and not used."""

HAM10000 = DatasetInfo(
    source="HAM10000",
    labels=("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    names=(
        "Actinic keratosis / Bowen's disease",
        "Basal cell carcinoma",
        "Benign keratosis",
        "Dermatofibroma",
        "Melanoma",
        "Melanocytic nevus",
        "Vascular lesion",
    ),
    # akiec counts as malignant: the dataset's paper describes it as an early, in-situ form of
    # squamous cell carcinoma.
    malignant=(True, True, False, False, True, False, False),
    focus="mel",
    # Of ISIC 2018 Task 3.
    isic_columns=("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"),
    synthetic=False,
)
"""The description of HAM10000."""
