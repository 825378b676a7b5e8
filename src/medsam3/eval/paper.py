"""The paper's rows, quoted beside ours. Its images, sizes and splits are others, so they are no comparison by case."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2511.19046, Table 2"


@dataclass(frozen=True)
class PaperRow:
    """Dice that the paper reports on one of its data sets, in 0..1.

    Attributes:
        name: The paper's data set.
        concept: What was segmented.
        datasets: Ours with the same source.
        unet: A U-Net.
        medsam: MedSAM with a box from the truth.
        sam3_text: SAM 3 by phrase.
        sam3_both: SAM 3 by phrase and a box from the truth.
        medsam3_text: MedSAM-3 by phrase.
        medsam3_both: MedSAM-3 by phrase and a box from the truth.
        agent: MedSAM-3's agent; None where it was not measured.
    """

    name: str
    concept: str
    datasets: tuple[str, ...]
    unet: float
    medsam: float
    sam3_text: float
    sam3_both: float
    medsam3_text: float
    medsam3_both: float
    agent: float | None = None


PAPER_ROWS = (
    PaperRow("BUSI", "breast tumor", ("busi",), 0.7618, 0.7514, 0.0, 0.7110, 0.2674, 0.7772, 0.8064),
    PaperRow("optic cup", "optic cup", ("drishti_gs",), 0.8480, 0.8479, 0.0, 0.8303, 0.0826, 0.8977),
    PaperRow("ISIC 2018", "skin lesion", ("ph2", "isic2017"), 0.8760, 0.9177, 0.2189, 0.8178, 0.5687, 0.9058),
    PaperRow("Kvasir-SEG", "polyp", ("kvasir_seg",), 0.8244, 0.7657, 0.0, 0.7671, 0.1441, 0.8831),
)
