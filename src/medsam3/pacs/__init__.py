"""Images from hospital archives, and results back to them: DICOMweb and DIMSE."""
